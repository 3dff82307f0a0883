"""ALE: Akata et al., "Label-Embedding for Image Classification", TPAMI 2016."""

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.features import Features


def weighted_ranking(scores: Features, labels: NDArray[np.int64]) -> Features:
    """[B, S] slope of (l_r / r) Σ_y [Δ(y_n, y) + F(x_n, y) − F(x_n, y_n)]₊ with l_r = Σ_{i≤r} 1/i.

    r is the number of classes that violate the margin, counted exactly and not sampled.
    """
    images = np.arange(len(labels))
    violated = scores + 1 > scores[images, labels][:, None]
    violated[images, labels] = False
    rank = violated.sum(1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, scores.shape[1] + 1))])
    weight = harmonic[rank] / np.maximum(rank, 1)
    slope = (violated * weight[:, None]).astype(np.float32)
    slope[images, labels] = -slope.sum(1)
    return slope
