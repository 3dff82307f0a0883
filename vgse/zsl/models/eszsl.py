"""ESZSL: Romera-Paredes & Torr, "An Embarrassingly Simple Approach to Zero-Shot Learning".

ICML 2015.
"""

import numpy as np

from vgse.zsl.features import Training
from vgse.zsl.models.bilinear import Embeddings, Score, span


def eszsl_matrix(
    training: Training, embeddings: Embeddings, gamma: float, lam: float
) -> Embeddings:
    """V [D, D_e] = (XᵀX + γI)⁻¹ XᵀYS (SᵀS + λI)⁻¹ with Y = ±1, in the notation of the paper.

    `gamma` and `lam` are relative to the mean eigenvalue of XᵀX and of SᵀS (over the min(S, D_e)
    that are not 0 by its rank), so that what validation chose fits the larger final split too.
    """
    embeddings, basis = span(embeddings)
    targets = 2 * training.class_sums.T - training.class_sums.sum(0)[:, None]  # XᵀY [D, S]
    ridge = gamma * training.spectrum.mean()
    left = (targets @ embeddings) / (training.spectrum + ridge)[:, None]
    gram = embeddings.T @ embeddings
    gram[np.diag_indices_from(gram)] += lam * np.trace(gram) / len(gram)
    return np.linalg.solve(gram, left.T).T @ basis


def fit_eszsl(
    training: Training, embeddings: Embeddings, *, seed: int = 0, gamma: float, lam: float
) -> Score:
    """The compatibility x V aᵀ; `seed` has no effect."""
    matrix = eszsl_matrix(training, embeddings, gamma, lam)
    return lambda features, embeddings: features @ (matrix @ embeddings.T).astype(np.float32)
