"""ConSE: Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings".

ICLR 2014.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.features import Features, Training, unit_rows
from vgse.zsl.models.bilinear import Embeddings, Score, fit_bilinear


def softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows of `scores` [M, S] as probabilities."""
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def cross_entropy_slope(scores: Features, labels: NDArray[np.int64]) -> Features:
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


@dataclass(frozen=True)
class ConseScore:
    """Cosine between the mean embedding of an image's likeliest seen classes and a class."""

    classifier: Score
    seen: Embeddings  # [S, D_e]
    top: int

    def __call__(self, features: Features, embeddings: Embeddings) -> NDArray[np.floating]:
        """Cosines [M, K] in -1..1 of `features` [M, D] and `embeddings` [K, D_e]."""
        shares = softmax(self.classifier(features, np.eye(len(self.seen))))
        if self.top < shares.shape[1]:
            floor = np.partition(shares, -self.top, axis=1)[:, -self.top]
            shares = np.where(shares >= floor[:, None], shares, 0)
        return unit_rows(shares @ self.seen) @ unit_rows(embeddings).T


def fit_conse(
    training: Training, embeddings: Embeddings, *, seed: int = 0, top: float = 10
) -> Score:
    """A softmax classifier of seen classes whose `top` answers mix the seen embeddings."""
    return ConseScore(_classifier(training, seed), embeddings, int(top))
