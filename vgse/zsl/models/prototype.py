"""Prototypes in feature space: class embeddings predict class means of image features.

Changpinyo, Chao & Sha, "Predicting Visual Exemplars of Unseen Classes for Zero-Shot Learning",
ICCV 2017, with a linear map in place of their kernel regression. Regressing towards the image
features, and not from them, avoids hubs (Zhang et al., "Learning a Deep Embedding Model for
Zero-Shot Learning", CVPR 2017).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.features import Features, Training, unit_rows
from vgse.zsl.models.bilinear import Embeddings, Score


@dataclass(frozen=True)
class PrototypeScore:
    """Cosine between an image and the predicted mean of a class, in a shrunken metric."""

    matrix: NDArray[np.float64]  # [D_e, D] embedding -> class mean
    metric: Features  # [D] factor of each axis

    def __call__(self, features: Features, embeddings: Embeddings) -> NDArray[np.floating]:
        """Cosines [M, K] in -1..1 of `features` [M, D] and `embeddings` [K, D_e]."""
        prototypes = unit_rows((embeddings @ self.matrix) * self.metric)
        # The metric stands twice: once on the images, without a copy of them.
        lengths = np.sqrt(np.einsum("md,md,d->m", features, features, self.metric**2))
        scores = features @ (prototypes * self.metric).T
        return scores / np.where(lengths > 0, lengths, 1)[:, None]


def fit_prototype(
    training: Training,
    embeddings: Embeddings,
    *,
    seed: int = 0,
    ridge: float = 0.1,
    shrinkage: float = 10.0,
) -> Score:
    """Ridge regression from embeddings to class means, then the nearest mean by cosine.

    P = Φ Φ_sᵀ (Φ_s Φ_sᵀ + ρI)⁻¹ M_s with ρ = `ridge` times the mean eigenvalue. An axis with
    variance v gets the metric 1/√(v + shrinkage · mean variance): small shrinkage whitens, large
    leaves the axes as they are. The closed form needs no `seed`.
    """
    means = training.class_sums / training.counts[:, None]
    gram = embeddings @ embeddings.T
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram)
    matrix = embeddings.T @ np.linalg.solve(gram, means)
    relative = training.spectrum / training.spectrum.mean()
    metric = (1 / np.sqrt(relative + shrinkage)).astype(np.float32)
    return PrototypeScore(matrix, metric)
