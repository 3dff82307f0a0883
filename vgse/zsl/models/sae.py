"""SAE: Kodirov, Xiang & Gong, "Semantic Autoencoder for Zero-Shot Learning", CVPR 2017."""

import numpy as np

from vgse.zsl.features import Training, unit_rows
from vgse.zsl.models.bilinear import Embeddings, Score, span


def sae_matrix(training: Training, embeddings: Embeddings, balance: float) -> Embeddings:
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


def fit_sae(training: Training, embeddings: Embeddings, *, seed: int = 0, balance: float) -> Score:
    """Cosine between the code W x of an image and the embedding of a class; `seed` has no effect.

    W is the encoder of a linear autoencoder tied to the embeddings.
    """
    encoder = sae_matrix(training, embeddings, balance).T.astype(np.float32)
    return lambda features, embeddings: unit_rows(features @ encoder) @ unit_rows(embeddings).T
