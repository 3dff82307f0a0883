"""Per-class top-1 and harmonic mean (Xian et al., "Zero-Shot Learning: A Comprehensive Evaluation
of the Good, the Bad and the Ugly", TPAMI 2018) and calibrated stacking (Chao et al., "An Empirical
Study and Analysis of Generalized Zero-Shot Learning", ECCV 2016)."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vgse.zsl.data import Indices

Floats = NDArray[np.floating]
_BLOCK = 1024


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


def stacked_predictions(scores: GeneralisedScores, gamma: float) -> tuple[Indices, Indices]:
    """Columns of images of seen and of unseen classes, `gamma` subtracted for seen classes."""
    penalty = np.zeros(scores.of_seen.shape[1])
    penalty[: scores.num_seen] = gamma

    def predictions(rows: Floats) -> Indices:
        blocks = range(0, max(1, len(rows)), _BLOCK)  # no second copy of all scores
        return np.concatenate([(rows[i : i + _BLOCK] - penalty).argmax(1) for i in blocks])

    return predictions(scores.of_seen), predictions(scores.of_unseen)


def calibrated_stacking(scores: GeneralisedScores, gamma: float) -> Generalised:
    """Accuracies where `gamma`, in the unit of the scores, is subtracted for seen classes."""
    of_seen, of_unseen = stacked_predictions(scores, gamma)
    seen = per_class_top1(of_seen, scores.labels_seen)
    unseen = per_class_top1(of_unseen, scores.labels_unseen)
    return Generalised(seen, unseen, harmonic_mean(seen, unseen))


@dataclass(frozen=True)
class StackingCurve:
    """Accuracies as gamma grows: they are `seen[i]` and `unseen[i]` while it lies between
    `edges[i]` and `edges[i + 1]`. Exact: they change only at the margins of images."""

    edges: NDArray[np.float64]  # [M + 2], the first and last one unit outside of all margins
    seen: NDArray[np.float64]  # [M + 1] falling
    unseen: NDArray[np.float64]  # [M + 1] rising

    def at(self, gamma: float) -> Generalised:
        """What is there at a gamma."""
        at = int(np.clip(np.searchsorted(self.edges, gamma) - 1, 0, len(self.seen) - 1))
        return _generalised(self.seen[at], self.unseen[at])

    def points(self, count: int) -> list[tuple[float, float]]:
        """(unseen, seen) of the whole curve, thinned to at most `count` points."""
        at = np.unique(np.linspace(0, len(self.seen) - 1, count).round().astype(int))
        return [(float(self.unseen[i]), float(self.seen[i])) for i in at]


def _generalised(seen: float, unseen: float) -> Generalised:
    return Generalised(float(seen), float(unseen), harmonic_mean(float(seen), float(unseen)))


def stacking_curve(folds: Iterable[tuple[GeneralisedScores, float]]) -> StackingCurve:
    """The curve of all folds together, each with the same weight; gamma is in the unit that stands
    beside a fold's scores, which are looked at one fold at a time."""
    margins, falling, rising = [], [], []
    for scores, unit in folds:
        split = scores.num_seen
        right_seen = scores.of_seen[:, :split].argmax(1) == scores.labels_seen
        right_unseen = scores.of_unseen[:, split:].argmax(1) + split == scores.labels_unseen
        # An image of a seen class stays right while gamma is below its margin; one of an unseen
        # class becomes right above.
        lost = np.where(right_seen, class_weights(scores.labels_seen), 0.0)
        won = np.where(right_unseen, class_weights(scores.labels_unseen), 0.0)
        for rows in (scores.of_seen, scores.of_unseen):
            difference = rows[:, :split].max(1) - rows[:, split:].max(1)
            margins.append(difference.astype(np.float64) / unit)
        falling += [lost, np.zeros_like(won)]
        rising += [np.zeros_like(lost), won]
    num_folds, joined = len(margins) // 2, np.concatenate(margins)
    order = np.argsort(joined, kind="stable")
    joined = joined[order]
    lost, won = (np.concatenate(x)[order] / num_folds for x in (falling, rising))
    edges = np.concatenate([[joined[0] - 1.0], joined, [joined[-1] + 1.0]])
    seen = lost.sum() - np.concatenate([[0.0], np.cumsum(lost)])
    unseen = np.concatenate([[0.0], np.cumsum(won)])
    between = edges[1:] > edges[:-1]  # no gamma lies between equal margins
    edges = np.concatenate([edges[:-1][between], edges[-1:]])
    return StackingCurve(edges, np.maximum(seen[between], 0.0), unseen[between])


def best_gamma(curve: StackingCurve) -> tuple[float, Generalised]:
    """The gamma with the highest harmonic mean, the middle of its interval, and what is there."""
    total = np.maximum(curve.seen + curve.unseen, 1e-12)
    best = int((2 * curve.seen * curve.unseen / total).argmax())
    gamma = float((curve.edges[best] + curve.edges[best + 1]) / 2)
    return gamma, _generalised(curve.seen[best], curve.unseen[best])


def seen_unseen_area(curve: StackingCurve) -> float:
    """AUSUC: the area under the accuracy on seen classes over that on unseen ones, in 0..1
    (Chao et al., ECCV 2016)."""
    return float(np.trapezoid(curve.seen, curve.unseen))
