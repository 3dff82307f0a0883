"""Folds: who is seen, who is unseen, and the images of each, for validation and for the end."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vgse.errors import UserError
from vgse.zsl.data import Indices, TestSplits, ZslData
from vgse.zsl.features import Features, Training, principal_axes, training_set


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
    if not 0 < holdout < 1:
        raise UserError(f"evaluation.holdout is {holdout}: give a share between 0 and 1")
    seen = np.setdiff1d(data.seen, data.val)
    if not len(data.val) or not len(seen):
        raise UserError(
            f"{len(data.val)} of {len(data.seen)} seen classes are validation classes: "
            "mark some, but not all, of them (about a fifth) as validation classes"
        )
    labels = data.labels[data.train]
    train, held = [], []
    for label in seen:
        images = np.sort(data.train[labels == label])
        if len(images) < 2:
            raise UserError(
                f"class {data.class_names[label]} has one training image: "
                "validation holds one out, so give it two or more"
            )
        images = np.random.default_rng((seed, int(label))).permutation(images)
        count = min(max(1, round(holdout * len(images))), len(images) - 1)
        held.append(images[:count])
        train.append(images[count:])
    pseudo_unseen = data.train[np.isin(labels, data.val)]
    return Fold(
        seen,
        np.sort(data.val),
        np.sort(np.concatenate(train)),
        np.sort(np.concatenate(held)),
        np.sort(pseudo_unseen),
    )


def final_fold(data: ZslData, test: TestSplits) -> Fold:
    """The fold of the final table; `test` comes from `TestGuard.open`."""
    return Fold(np.sort(data.seen), np.sort(data.unseen), data.train, test.seen, test.unseen)


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
    columns = np.full(len(data.class_names), -1)
    columns[fold.seen] = np.arange(len(fold.seen))
    columns[fold.unseen] = len(fold.seen) + np.arange(len(fold.unseen))
    train = data.features[fold.train]
    axes = principal_axes(train)
    labels = columns[data.labels[fold.train]]
    return PreparedFold(
        training_set(axes.transform(train), labels, len(fold.seen)),
        axes.transform(data.features[fold.test_seen]),
        columns[data.labels[fold.test_seen]],
        axes.transform(data.features[fold.test_unseen]),
        columns[data.labels[fold.test_unseen]],
        len(fold.seen),
    )


def class_means(
    features: Features, labels: Indices, images: Indices, num_classes: int
) -> NDArray[np.float64]:
    """[C, D_f] mean features of each class over `images`; NaN for a class without one."""
    sums = np.zeros((num_classes, features.shape[1]))
    counts = np.bincount(labels[images], minlength=num_classes)
    for label in np.flatnonzero(counts):
        sums[label] = features[images[labels[images] == label]].mean(0, dtype=np.float64)
    sums[counts == 0] = np.nan
    return sums
