"""ConSE: Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR
2014."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.data import Features, Indices
from vgse.zsl.features import Training, unit_rows
from vgse.zsl.models.bilinear import Embeddings, Score, fit_bilinear


def softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows of `scores` [M, S] as probabilities."""
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def cross_entropy_slope(scores: Features, labels: Indices) -> Features:
    """[B, S] slope of −ln softmax(scores)[label]."""
    slope = np.asarray(softmax(scores), np.float32)
    slope[np.arange(len(labels)), labels] -= 1
    return slope


@lru_cache(maxsize=1)
def _classifier(training: Training, seed: int) -> Score:
    """Softmax regression over the seen classes: the same for every row of the table."""
    seen = np.eye(len(training.counts))
    steps = {"learning_rate": 30.0, "weight_decay": 1e-4}
    return fit_bilinear(training, seen, slope=cross_entropy_slope, seed=seed, **steps)


def fit_conse(training: Training, embeddings: Embeddings, *, seed: int = 0, top: float) -> Score:
    """Cosine between a class and the mean embedding of an image's `top` likeliest seen classes."""
    classifier, seen, count = _classifier(training, seed), embeddings, int(top)

    def score(features: Features, embeddings: Embeddings) -> NDArray[np.floating]:
        shares = softmax(classifier(features, np.eye(len(seen))))
        if count < shares.shape[1]:
            floor = np.partition(shares, -count, axis=1)[:, -count]
            shares = np.where(shares >= floor[:, None], shares, 0)
        return unit_rows(shares @ seen) @ unit_rows(embeddings).T

    return score
