"""SAE: Kodirov, Xiang & Gong, "Semantic Autoencoder for Zero-Shot Learning", CVPR 2017."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.features import Features, Training, unit_rows
from vgse.zsl.models.bilinear import Embeddings, Score, span


def sae_matrix(training: Training, embeddings: Embeddings, balance: float) -> NDArray[np.float64]:
    """W [D_e, D] with S Sᵀ W + λ W X Xᵀ = (1 + λ) S Xᵀ, columns of X and S being images.

    λ is `balance` times the ratio of the traces of S Sᵀ and X Xᵀ. X Xᵀ is diagonal here, so
    the Sylvester equation takes one eigendecomposition of S Sᵀ.
    """
    embeddings, basis = span(embeddings)
    codes = embeddings.T * training.counts @ embeddings  # S Sᵀ [D_e, D_e]
    lam = balance * np.trace(codes) / training.spectrum.sum()
    values, vectors = np.linalg.eigh(codes)
    values = np.maximum(values, 0)
    right = vectors.T @ (embeddings.T @ training.class_sums)
    return basis.T @ vectors @ ((1 + lam) * right / (values[:, None] + lam * training.spectrum))


@dataclass(frozen=True)
class SaeScore:
    """Cosine between the code W x of an image and the embedding of a class."""

    matrix: NDArray[np.float64]  # W [D_e, D]

    def __call__(self, features: Features, embeddings: Embeddings) -> NDArray[np.floating]:
        """Cosines [M, K] in -1..1 of `features` [M, D] and `embeddings` [K, D_e]."""
        return unit_rows(features @ self.matrix.T.astype(np.float32)) @ unit_rows(embeddings).T


def fit_sae(
    training: Training, embeddings: Embeddings, *, seed: int = 0, balance: float = 1.0
) -> Score:
    """The encoder of a linear autoencoder tied to the embeddings. Needs no `seed`."""
    return SaeScore(sae_matrix(training, embeddings, balance))
