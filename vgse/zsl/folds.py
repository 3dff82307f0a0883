"""Folds: who is seen, who is unseen, and the images of each, for validation and for the end."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vgse.errors import UserError
from vgse.zsl.data import Features, Indices, ZslData
from vgse.zsl.features import Training, class_sums, principal_axes, training_set


@dataclass(frozen=True)
class Fold:
    """One zero-shot problem: indices of classes and of images."""

    seen: Indices  # [S] classes to learn from
    unseen: Indices  # [U] classes to predict
    train: Indices
    test_seen: Indices
    test_unseen: Indices


def validation_fold(data: ZslData, holdout: float, seed: int = 0) -> Fold:
    """The fold on which everything is chosen; all its images are training images.

    Validation classes play the unseen ones. Of each other seen class a share `holdout` of the
    training images, drawn by `seed` and class, plays test_seen.
    """
    seen = np.setdiff1d(data.seen, data.val)
    if not len(data.val) or not len(seen):
        raise UserError(
            f"{len(data.val)} of {len(data.seen)} seen classes are validation classes: "
            "mark some, but not all, of them (about a fifth) as validation classes"
        )
    labels = data.labels[data.train]
    train, held_out = [], []
    for label in seen:
        images = np.sort(data.train[labels == label])
        if len(images) < 2:
            raise UserError(
                f"class {data.class_names[label]} has one training image: "
                "validation holds one out, so give it two or more"
            )
        images = np.random.default_rng((seed, int(label))).permutation(images)
        count = min(max(1, round(holdout * len(images))), len(images) - 1)
        held_out.append(images[:count])
        train.append(images[count:])
    return Fold(
        seen,
        np.sort(data.val),
        np.sort(np.concatenate(train)),
        np.sort(np.concatenate(held_out)),
        np.sort(data.train[np.isin(labels, data.val)]),
    )


def final_fold(data: ZslData) -> Fold:
    """The fold of the final table; `TestGuard.open` sees that it comes last."""
    return Fold(
        np.sort(data.seen), np.sort(data.unseen), data.train, data.test_seen, data.test_unseen
    )


@dataclass
class TestGuard:
    """Gives the test images out once, and records for what, and after what work."""

    __test__ = False  # pytest would take the name for a test

    data: ZslData
    log: list[dict[str, object]] = field(default_factory=list)
    """`test_opened` of evaluation.json."""
    _notes: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Records work that was done while the test images were closed."""
        if self.log:
            raise UserError(f"the test images are open already: {what} must come before")
        self._notes.append(what)

    def open(self, purpose: str) -> Fold:
        """The final fold; a second call is refused."""
        if self.log:
            raise UserError(
                f"the test images were opened for {self.log[0]['purpose']}: "
                "make every choice on validation classes and open them once"
            )
        self.log = [
            {
                "order": order,
                "split": split,
                "images": len(getattr(self.data, split)),
                "purpose": purpose,
                "after": list(self._notes),
            }
            for order, split in enumerate(("test_seen", "test_unseen"), 1)
        ]
        return final_fold(self.data)


@dataclass(frozen=True)
class PreparedFold:
    """A fold's features, as models get them; labels are rows of [seen; unseen] embeddings."""

    training: Training
    seen_features: Features  # [M_s, D]
    seen_labels: Indices  # [M_s] in 0..S-1
    unseen_features: Features  # [M_u, D]
    unseen_labels: Indices  # [M_u] in S..S+U-1
    num_seen: int


def prepare(data: ZslData, fold: Fold) -> PreparedFold:
    """Features of `fold` in the axes of its own training images."""
    rows = np.full(len(data.class_names), -1)
    rows[np.concatenate([fold.seen, fold.unseen])] = np.arange(len(fold.seen) + len(fold.unseen))
    labels = rows[data.labels]
    train = data.features[fold.train]
    axes = principal_axes(train)
    return PreparedFold(
        training_set(axes.transform(train), labels[fold.train], len(fold.seen)),
        axes.transform(data.features[fold.test_seen]),
        labels[fold.test_seen],
        axes.transform(data.features[fold.test_unseen]),
        labels[fold.test_unseen],
        len(fold.seen),
    )


def class_means(
    features: Features, labels: Indices, images: Indices, num_classes: int
) -> NDArray[np.float64]:
    """[C, D_f] mean features of each class over `images`; NaN for a class without one."""
    counts = np.bincount(labels[images], minlength=num_classes)[:, None]
    with np.errstate(invalid="ignore"):
        return class_sums(features[images], labels[images], num_classes) / counts
