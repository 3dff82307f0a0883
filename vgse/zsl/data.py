"""What zero-shot evaluation works on: features, labels, and who may see which image."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vgse.errors import UserError

Indices = NDArray[np.int64]
Features = NDArray[np.float32]


@dataclass(frozen=True)
class ZslData:
    """Image features with the splits of the zero-shot protocol.

    `train`, `test_seen` and `test_unseen` index images; `seen`, `unseen` and `val` index
    `class_names`. `val` is the part of `seen` that validation treats as unseen.
    """

    features: Features  # [M, D_f]
    labels: Indices  # [M] into class_names
    train: Indices
    test_seen: Indices
    test_unseen: Indices
    class_names: list[str]
    seen: Indices  # [S]
    unseen: Indices  # [U]
    val: Indices

    def __post_init__(self) -> None:
        """UserError where the parts contradict each other."""
        _check_arrays(self)
        _check_classes(self)
        _check_splits(self)


def _check_arrays(data: ZslData) -> None:
    if data.features.ndim != 2 or len(data.features) != len(data.labels):
        raise UserError(
            f"features of shape {data.features.shape} do not fit {len(data.labels)} labels: "
            "give one row of features an image"
        )
    if not np.isfinite(data.features).all():
        bad = np.flatnonzero(~np.isfinite(data.features).all(axis=1))
        raise UserError(
            f"features hold NaN or infinity in {len(bad)} rows, first {bad[0]}: compute them again"
        )
    num_classes = len(data.class_names)
    if len(data.labels) and not 0 <= data.labels.min() <= data.labels.max() < num_classes:
        raise UserError(
            f"labels run from {data.labels.min()} to {data.labels.max()}, but there are "
            f"{num_classes} class names: labels count from 0"
        )
    if len(set(data.class_names)) != num_classes:
        raise UserError("class_names hold a name twice: rename one of the two classes")


def _named(data: ZslData, classes: Indices) -> str:
    names = [data.class_names[c] for c in classes[:5]]
    return ", ".join(names) + (" …" if len(classes) > 5 else "")


def _check_classes(data: ZslData) -> None:
    for field_name in ("seen", "unseen", "val"):
        classes = getattr(data, field_name)
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(data.class_names):
            raise UserError(f"{field_name} points outside the {len(data.class_names)} class names")
        if len(np.unique(classes)) != len(classes):
            raise UserError(f"{field_name} names a class twice")
    both = np.intersect1d(data.seen, data.unseen)
    if len(both):
        raise UserError(
            f"classes are both seen and unseen: {_named(data, both)}; correct the split"
        )
    if not len(data.seen) or not len(data.unseen):
        raise UserError("seen or unseen holds no class: correct the split")
    stray = np.setdiff1d(data.val, data.seen)
    if len(stray):
        raise UserError(
            f"validation classes must be seen classes, but these are not: {_named(data, stray)}"
        )


def _check_splits(data: ZslData) -> None:
    splits = {"train": data.seen, "test_seen": data.seen, "test_unseen": data.unseen}
    for name, classes in splits.items():
        images = getattr(data, name)
        if not len(images):
            raise UserError(f"{name} holds no image: correct the split")
        if not 0 <= images.min() <= images.max() < len(data.labels):
            raise UserError(f"{name} points outside the {len(data.labels)} images")
        foreign = np.setdiff1d(data.labels[images], classes)
        if len(foreign):
            kind = "unseen" if name == "test_unseen" else "seen"
            raise UserError(
                f"{name} holds images of classes that are not {kind}: {_named(data, foreign)}"
            )
    all_images = np.concatenate([data.train, data.test_seen, data.test_unseen])
    if len(np.unique(all_images)) != len(all_images):
        raise UserError(
            "an image stands in two of train, test_seen and test_unseen, or twice in one"
        )
    missing = np.setdiff1d(data.seen, data.labels[data.train])
    if len(missing):
        raise UserError(f"seen classes without a training image: {_named(data, missing)}")


def with_validation(data: ZslData, share: float = 0.2, seed: int = 0) -> ZslData:
    """`data` with validation classes: its own, or else a seeded `share` of the seen classes."""
    if len(data.val):
        return data
    count = max(2, round(share * len(data.seen)))
    chosen = np.random.default_rng(seed).permutation(data.seen)[:count]
    return replace(data, val=np.sort(chosen))


@dataclass(frozen=True)
class TestSplits:
    """The images on which the final table is scored."""

    __test__ = False  # pytest would take the name for a test

    seen: Indices
    unseen: Indices


@dataclass
class TestGuard:
    """Gives the test images out once; `log` is what evaluation.json shows as `test_opened`."""

    __test__ = False

    data: ZslData
    log: list[dict[str, object]] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Records work that was done while the test images were closed."""
        if self.log:
            raise UserError(f"the test images are open already: {what} must come before")
        self._notes.append(what)

    def open(self, purpose: str) -> TestSplits:
        """The test images, if they were not given out before."""
        if self.log:
            raise UserError(
                f"the test images were opened for {self.log[0]['purpose']}: "
                "make every choice on validation classes and open them once"
            )
        for name, images in (
            ("test_seen", self.data.test_seen),
            ("test_unseen", self.data.test_unseen),
        ):
            self.log.append(
                {
                    "order": len(self.log) + 1,
                    "split": name,
                    "images": len(images),
                    "purpose": purpose,
                    "after": list(self._notes),
                }
            )
        return TestSplits(self.data.test_seen, self.data.test_unseen)
