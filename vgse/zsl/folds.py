"""Folds: who is seen, who is unseen, and the images of each, for validation and for the end."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vgse.errors import UserError
from vgse.zsl.data import Features, Indices, ZslData
from vgse.zsl.features import Training, principal_axes, training_set


@dataclass(frozen=True)
class Fold:
    """One zero-shot problem: indices of classes and of images."""

    seen: Indices  # [S] classes to learn from
    unseen: Indices  # [U] classes to predict
    train: Indices
    test_seen: Indices
    test_unseen: Indices


def class_turns(seen: Indices, val: Indices, seed: int, count: int) -> list[Indices]:
    """The classes that are unseen in each fold: the validation classes in the first, then the other
    seen ones in groups of about as many, drawn by `seed`; `count` folds at most."""
    others = np.setdiff1d(seen, val)
    if not len(val) or not len(others):
        raise UserError(
            f"{len(val)} of {len(seen)} seen classes are validation classes: "
            "mark some, but not all, of them (about a fifth) as validation classes"
        )
    # A group of one class would always be right.
    turns = min(count - 1, max(1, round(len(others) / len(val))), len(others) // 2)
    shuffled = np.random.default_rng((seed, len(others))).permutation(others)
    groups = [val, *(np.array_split(shuffled, turns) if turns > 0 else [])]
    return [np.sort(group) for group in groups]


def validation_folds(
    data: ZslData,
    holdout: float,
    seed: int = 0,
    count: int = 5,
    *,
    turns: Sequence[Indices] | None = None,
) -> list[Fold]:
    """The folds on which everything is chosen, `count` at most, or those of `turns`; see
    `class_turns` and `class_folds`."""
    groups = class_turns(data.seen, data.val, seed, count) if turns is None else turns
    return class_folds(data.labels, data.train, data.seen, groups, holdout=holdout, seed=seed)


def validation_fold(data: ZslData, holdout: float, seed: int = 0) -> Fold:
    """The first of the `validation_folds`."""
    return validation_folds(data, holdout, seed, 1)[0]


def class_folds(
    labels: Indices,
    images: Indices,
    seen: Indices,
    turns: Sequence[Indices],
    *,
    holdout: float,
    seed: int,
) -> list[Fold]:
    """Folds of training images alone, one for each of `turns`, the classes that are unseen in it.

    Of each class that is seen in a fold a share `holdout` of the images, drawn by `seed` and class,
    plays test_seen; a class with one image keeps it for training. A fold without such an image is
    left out.

    Args:
        labels: [M] of all images.
        images: training images, indices into `labels`.
        seen: [S] classes.
        turns: some of `seen` for each fold.
        holdout: share of each class's images.
        seed: of held-out images.
    """
    of_class, kept, held = {}, {}, {}
    for label in seen:
        own = np.sort(images[labels[images] == label])
        drawn = np.random.default_rng((seed, int(label))).permutation(own)
        size = min(max(1, round(holdout * len(own))), len(own) - 1)
        of_class[label], held[label], kept[label] = own, drawn[:size], drawn[size:]
    folds = []
    for unseen in turns:
        rest = np.setdiff1d(seen, unseen)
        train, test_seen = (
            np.sort(np.concatenate([part[c] for c in rest])) for part in (kept, held)
        )
        test_unseen = np.sort(np.concatenate([of_class[c] for c in unseen]))
        fold = Fold(rest, np.sort(unseen), train, test_seen, test_unseen)
        if len(fold.test_seen):
            folds.append(fold)
    if not folds:
        raise UserError(
            "every seen class has one training image: validation holds some out, so give classes "
            "two or more"
        )
    return folds


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
    return prepare_images(data.features, data.labels, fold)


def prepare_images(features: Features, labels: Indices, fold: Fold) -> PreparedFold:
    """As `prepare`, of features [M, D_f] and labels [M]."""
    classes = np.concatenate([fold.seen, fold.unseen])
    rows = np.full(classes.max() + 1, -1)
    rows[classes] = np.arange(len(classes))
    axes = principal_axes(features, fold.train)
    train = axes.transform(features, fold.train)
    return PreparedFold(
        training_set(train, rows[labels[fold.train]], len(fold.seen)),
        axes.transform(features, fold.test_seen),
        rows[labels[fold.test_seen]],
        axes.transform(features, fold.test_unseen),
        rows[labels[fold.test_unseen]],
        len(fold.seen),
    )


def class_means(
    features: Features, labels: Indices, images: Indices, num_classes: int
) -> NDArray[np.float64]:
    """[C, D_f] mean features of each class over `images`; NaN for a class without one."""
    means = np.full((num_classes, features.shape[1]), np.nan)
    for label in np.unique(labels[images]):
        means[label] = features[images[labels[images] == label]].mean(0, dtype=np.float64)
    return means
