"""What zero-shot evaluation works on: features, labels, and who may see which image."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vgse.errors import UserError

Indices = NDArray[np.int64]
Features = NDArray[np.float32]


@dataclass(frozen=True)
class ZslData:
    """Image features with the splits of the zero-shot protocol.

    `train`, `test_seen` and `test_unseen` index images; `seen`, `unseen` and `val` index
    `class_names`. What contradicts itself is refused.
    """

    features: NDArray[np.floating]  # [M, D_f]
    labels: Indices  # [M] into class_names
    train: Indices
    test_seen: Indices
    test_unseen: Indices
    class_names: list[str]
    seen: Indices  # [S]
    unseen: Indices  # [U]
    val: Indices  # the part of `seen` that validation treats as unseen

    def __post_init__(self) -> None:
        self._check_images()
        self._check_classes()
        self._check_splits()

    def _names(self, classes: Indices) -> str:
        names = [self.class_names[c] for c in classes[:5]]
        return ", ".join(names) + (" …" if len(classes) > 5 else "")

    def _check_images(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.labels):
            raise UserError(
                f"features of shape {self.features.shape} do not fit {len(self.labels)} labels: "
                "give one row of features an image"
            )
        bad = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
        if len(bad):
            raise UserError(
                f"features hold NaN or infinity in {len(bad)} rows, first {bad[0]}: "
                "compute them again"
            )
        if len(self.features) and not (self.features != self.features[0]).any():
            raise UserError("features are the same for all images: compute them again")
        if not _inside(self.labels, len(self.class_names)):
            raise UserError(
                f"labels run from {self.labels.min()} to {self.labels.max()}, but there are "
                f"{len(self.class_names)} class names: labels count from 0"
            )

    def _check_classes(self) -> None:
        if len(set(self.class_names)) != len(self.class_names):
            raise UserError("class_names hold a name twice: rename one of the two classes")
        for name in ("seen", "unseen", "val"):
            classes = getattr(self, name)
            if not _inside(classes, len(self.class_names)):
                raise UserError(f"{name} points outside the {len(self.class_names)} class names")
            if len(np.unique(classes)) != len(classes):
                raise UserError(f"{name} names a class twice")
        both = np.intersect1d(self.seen, self.unseen)
        if len(both):
            raise UserError(
                f"classes are both seen and unseen: {self._names(both)}; correct the split"
            )
        if not len(self.seen) or not len(self.unseen):
            raise UserError("seen or unseen holds no class: correct the split")
        stray = np.setdiff1d(self.val, self.seen)
        if len(stray):
            raise UserError(
                f"validation classes must be seen classes, but these are not: {self._names(stray)}"
            )

    def _check_splits(self) -> None:
        for name in ("train", "test_seen", "test_unseen"):
            images = getattr(self, name)
            if not len(images):
                raise UserError(f"{name} holds no image: correct the split")
            if not _inside(images, len(self.labels)):
                raise UserError(f"{name} points outside the {len(self.labels)} images")
            kind = "unseen" if name == "test_unseen" else "seen"
            foreign = np.setdiff1d(self.labels[images], getattr(self, kind))
            if len(foreign):
                raise UserError(
                    f"{name} holds images of classes that are not {kind}: {self._names(foreign)}"
                )
        images = np.concatenate([self.train, self.test_seen, self.test_unseen])
        if len(np.unique(images)) != len(images):
            raise UserError(
                "an image stands in two of train, test_seen and test_unseen, or twice in one"
            )
        missing = np.setdiff1d(self.seen, self.labels[self.train])
        if len(missing):
            raise UserError(f"seen classes without a training image: {self._names(missing)}")


def _inside(indices: Indices, size: int) -> bool:
    return not len(indices) or bool(0 <= indices.min() <= indices.max() < size)


def validation_classes(seen: Indices, val: Indices, seed: int = 0) -> Indices:
    """`val`, or where it is empty a seeded fifth of the seen classes."""
    if len(val):
        return val
    count = max(2, round(0.2 * len(seen)))
    return np.sort(np.random.default_rng(seed).permutation(seen)[:count])


def with_validation(data: ZslData, seed: int = 0) -> ZslData:
    """`data` with validation classes: its own, or else a seeded fifth of the seen classes."""
    if len(data.val):
        return data
    return replace(data, val=validation_classes(data.seen, data.val, seed))
