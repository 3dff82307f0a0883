"""The models that have a closed form: ESZSL, SAE and prototypes.

One eigendecomposition for class embeddings serves all hyper-parameters, each by a division; scores
come one by one, as their matrices may be large.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.data import Features
from vgse.zsl.features import Training, unit_rows
from vgse.zsl.models.bilinear import Embeddings, Params, Score, span


def fit_eszsl(
    training: Training, embeddings: Embeddings, seed: int, grid: Sequence[Params]
) -> Iterator[Score]:
    """(gamma, lam) -> the compatibility x V aᵀ with V [D, D_e] = (XᵀX + γI)⁻¹ XᵀYS (SᵀS + λI)⁻¹ and
    Y = ±1, in the notation of the paper; `seed` has no effect.

    Romera-Paredes & Torr, "An Embarrassingly Simple Approach to Zero-Shot Learning", ICML 2015.
    `gamma` and `lam` are relative to the mean eigenvalue of XᵀX and of SᵀS (over the min(S, D_e)
    that are not 0 by its rank), so that what validation chose fits the larger final split too.
    """
    embeddings, basis = span(embeddings)
    targets = 2 * training.class_sums.T - training.class_sums.sum(0)[:, None]  # XᵀY [D, S]
    values, vectors = np.linalg.eigh(embeddings.T @ embeddings)
    values = np.maximum(values, 0)
    left, right = targets @ (embeddings @ vectors), vectors.T @ basis
    spectrum = training.spectrum[:, None]

    def fit(gamma: float, lam: float) -> Score:
        ridges = spectrum + gamma * spectrum.mean(), values + lam * values.mean()

        def score(features: Features, embeddings: Embeddings) -> NDArray[np.floating]:
            matrix = (left / ridges[0] / ridges[1]) @ (right @ embeddings.T)
            return features @ matrix.astype(np.float32)

        return score

    return (fit(**params) for params in grid)


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


def fit_sae(
    training: Training, embeddings: Embeddings, seed: int, grid: Sequence[Params]
) -> Iterator[Score]:
    """(balance) -> cosine between the code W x of an image and a class embedding, the paper's
    direction F→S; `seed` has no effect."""

    def fit(balance: float) -> Score:
        encoder = sae_matrix(training, embeddings, balance).T.astype(np.float32)
        return lambda features, embeddings: unit_rows(features @ encoder) @ unit_rows(embeddings).T

    return (fit(**params) for params in grid)


def fit_sae_decoder(
    training: Training, embeddings: Embeddings, seed: int, grid: Sequence[Params]
) -> Iterator[Score]:
    """(balance) -> cosine between an image and the decoded Wᵀ a of a class embedding, the paper's
    direction S→F; `seed` has no effect."""

    def fit(balance: float) -> Score:
        decoder = sae_matrix(training, embeddings, balance)
        return lambda features, embeddings: unit_rows(features) @ unit_rows(embeddings @ decoder).T

    return (fit(**params) for params in grid)


def fit_prototype(
    training: Training, embeddings: Embeddings, seed: int, grid: Sequence[Params]
) -> Iterator[Score]:
    """(ridge, shrinkage) -> ridge regression from embeddings to class means, then the nearest mean
    by cosine; `seed` has no effect.

    Changpinyo, Chao & Sha, "Predicting Visual Exemplars of Unseen Classes for Zero-Shot Learning",
    ICCV 2017, with a linear map in place of their kernel regression.

    P = Φ Φ_sᵀ (Φ_s Φ_sᵀ + ρI)⁻¹ M_s with ρ = `ridge` times the mean eigenvalue. An axis with
    variance v gets the metric 1/√(v + shrinkage · mean variance): small shrinkage whitens, large
    leaves the axes as they are.
    """
    means = training.class_sums / training.counts[:, None]
    values, vectors = np.linalg.eigh(embeddings @ embeddings.T)
    values = np.maximum(values, 0)
    to_axes, to_features = embeddings.T @ vectors, vectors.T @ means
    relative = training.spectrum / training.spectrum.mean()

    def fit(ridge: float, shrinkage: float) -> Score:
        ridges = values + ridge * values.mean()
        metric = (1 / np.sqrt(relative + shrinkage)).astype(np.float32)

        def score(features: Features, embeddings: Embeddings) -> NDArray[np.floating]:
            prototypes = unit_rows((embeddings @ to_axes / ridges) @ to_features * metric)
            # The metric stands twice: once on the images, without a copy of them.
            lengths = np.sqrt(np.einsum("md,md,d->m", features, features, metric**2))
            scores = features @ (prototypes * metric).T
            scores /= np.where(lengths > 0, lengths, 1)[:, None]
            return scores

        return score

    return (fit(**params) for params in grid)
