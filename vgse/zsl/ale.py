"""ALE: Akata et al., "Label-Embedding for Image Classification", TPAMI 2016."""

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.bilinear import Embeddings, Score, Steps, fit_bilinear
from vgse.zsl.features import Features, Training


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


def fit_ale(
    training: Training, embeddings: Embeddings, *, seed: int = 0, weight_decay: float = 0.03
) -> Score:
    """The compatibility x W aᵀ learned by SGD on the weighted ranking loss and ½‖W‖²."""
    steps = Steps(weight_decay=weight_decay)
    return fit_bilinear(training, embeddings, weighted_ranking, steps, seed)
