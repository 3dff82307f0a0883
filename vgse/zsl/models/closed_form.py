"""The models that have a closed form: ESZSL, SAE and prototypes."""

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.data import Features
from vgse.zsl.features import Training, unit_rows
from vgse.zsl.models.bilinear import Embeddings, Score, span


def eszsl_matrix(
    training: Training, embeddings: Embeddings, gamma: float, lam: float
) -> Embeddings:
    """V [D, D_e] = (XᵀX + γI)⁻¹ XᵀYS (SᵀS + λI)⁻¹ with Y = ±1, in the notation of the paper.

    Romera-Paredes & Torr, "An Embarrassingly Simple Approach to Zero-Shot Learning", ICML 2015.
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


def sae_matrix(training: Training, embeddings: Embeddings, balance: float) -> Embeddings:
    """W [D_e, D] with S Sᵀ W + λ W X Xᵀ = (1 + λ) S Xᵀ, columns of X and S being images.

    Kodirov, Xiang & Gong, "Semantic Autoencoder for Zero-Shot Learning", CVPR 2017. λ is `balance`
    times the ratio of the traces of S Sᵀ and X Xᵀ. X Xᵀ is diagonal here, so the Sylvester equation
    takes one eigendecomposition of S Sᵀ.
    """
    embeddings, basis = span(embeddings)
    codes = embeddings.T * training.counts @ embeddings  # S Sᵀ [D_e, D_e]
    lam = balance * np.trace(codes) / training.spectrum.sum()
    values, vectors = np.linalg.eigh(codes)
    values = np.maximum(values, 0)
    right = vectors.T @ (embeddings.T @ training.class_sums)
    return basis.T @ vectors @ ((1 + lam) * right / (values[:, None] + lam * training.spectrum))


def fit_sae(training: Training, embeddings: Embeddings, *, seed: int = 0, balance: float) -> Score:
    """Cosine between the code W x of an image and a class embedding; `seed` has no effect."""
    encoder = sae_matrix(training, embeddings, balance).T.astype(np.float32)
    return lambda features, embeddings: unit_rows(features @ encoder) @ unit_rows(embeddings).T


def fit_prototype(
    training: Training, embeddings: Embeddings, *, seed: int = 0, ridge: float, shrinkage: float
) -> Score:
    """Ridge regression from embeddings to class means, then the nearest mean by cosine.

    Changpinyo, Chao & Sha, "Predicting Visual Exemplars of Unseen Classes for Zero-Shot Learning",
    ICCV 2017, with a linear map in place of their kernel regression.

    P = Φ Φ_sᵀ (Φ_s Φ_sᵀ + ρI)⁻¹ M_s with ρ = `ridge` times the mean eigenvalue. An axis with
    variance v gets the metric 1/√(v + shrinkage · mean variance): small shrinkage whitens, large
    leaves the axes as they are. `seed` has no effect.
    """
    means = training.class_sums / training.counts[:, None]
    gram = embeddings @ embeddings.T
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram)
    matrix = embeddings.T @ np.linalg.solve(gram, means)  # [D_e, D] embedding -> class mean
    relative = training.spectrum / training.spectrum.mean()
    metric = (1 / np.sqrt(relative + shrinkage)).astype(np.float32)

    def score(features: Features, embeddings: Embeddings) -> NDArray[np.floating]:
        prototypes = unit_rows((embeddings @ matrix) * metric)
        # The metric stands twice: once on the images, without a copy of them.
        lengths = np.sqrt(np.einsum("md,md,d->m", features, features, metric**2))
        return features @ (prototypes * metric).T / np.where(lengths > 0, lengths, 1)[:, None]

    return score
