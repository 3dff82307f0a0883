"""Per-class top-1 and harmonic mean (Xian et al., "Zero-Shot Learning: A Comprehensive Evaluation
of the Good, the Bad and the Ugly", TPAMI 2018) and calibrated stacking (Chao et al., "An Empirical
Study and Analysis of Generalized Zero-Shot Learning", ECCV 2016)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vgse.zsl.data import Indices

Floats = NDArray[np.floating]


def per_class_top1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Mean over the classes in `labels` of the share of their images that is right, in 0..1."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    assert len(labels), "an empty split has no accuracy"
    return float(class_weights(labels)[predictions == labels].sum())


def class_weights(labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """[M] weights that sum to 1 and give each class that is present the same share."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return 1.0 / (counts[inverse] * len(counts))


def harmonic_mean(seen: float, unseen: float) -> float:
    """2su / (s + u), and 0 where both are 0. Xian et al. 2018, Eq. 16."""
    return 2 * seen * unseen / (seen + unseen) if seen + unseen > 0 else 0.0


@dataclass(frozen=True)
class Generalised:
    """Accuracies among all classes, in 0..1."""

    seen: float
    unseen: float
    harmonic_mean: float


@dataclass(frozen=True)
class GeneralisedScores:
    """Scores of test images against the seen classes (columns [:S]) and the unseen ones."""

    of_seen: Floats  # [M_s, S + U] scores of images of seen classes
    of_unseen: Floats  # [M_u, S + U] scores of images of unseen classes
    labels_seen: Indices  # [M_s] columns
    labels_unseen: Indices  # [M_u] columns
    num_seen: int


def calibrated_stacking(scores: GeneralisedScores, gamma: float) -> Generalised:
    """Accuracies where `gamma`, in the unit of the scores, is subtracted for seen classes."""
    penalty = np.zeros(scores.of_seen.shape[1])
    penalty[: scores.num_seen] = gamma
    seen = per_class_top1((scores.of_seen - penalty).argmax(1), scores.labels_seen)
    unseen = per_class_top1((scores.of_unseen - penalty).argmax(1), scores.labels_unseen)
    return Generalised(seen, unseen, harmonic_mean(seen, unseen))


def best_gamma(scores: GeneralisedScores) -> tuple[float, Generalised]:
    """The gamma with the highest harmonic mean, and the accuracies there.

    Exact: H changes only at the margins of images. gamma is the middle of the best interval.
    """
    split = scores.num_seen
    right_seen = scores.of_seen[:, :split].argmax(1) == scores.labels_seen
    right_unseen = scores.of_unseen[:, split:].argmax(1) + split == scores.labels_unseen
    # An image of a seen class stays right while gamma is below its margin; one of an unseen
    # class becomes right above.
    margins = np.concatenate(
        [s[:, :split].max(1) - s[:, split:].max(1) for s in (scores.of_seen, scores.of_unseen)],
        dtype=np.float64,
    )
    lost = np.where(right_seen, class_weights(scores.labels_seen), 0.0)
    won = np.where(right_unseen, class_weights(scores.labels_unseen), 0.0)
    order = np.argsort(margins, kind="stable")
    margins = margins[order]
    falling = np.concatenate([lost, np.zeros_like(won)])[order]
    rising = np.concatenate([np.zeros_like(lost), won])[order]
    # Entry i: gamma between margins[i-1] and margins[i].
    seen = lost.sum() - np.concatenate([[0.0], np.cumsum(falling)])
    unseen = np.concatenate([[0.0], np.cumsum(rising)])
    harmonic = 2 * seen * unseen / np.maximum(seen + unseen, 1e-12)
    edges = np.concatenate([[margins[0] - 1.0], margins, [margins[-1] + 1.0]])
    harmonic[edges[1:] <= edges[:-1]] = -1.0  # no gamma lies between equal margins
    best = int(harmonic.argmax())
    gamma = float((edges[best] + edges[best + 1]) / 2)
    return gamma, calibrated_stacking(scores, gamma)
