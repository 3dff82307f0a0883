"""Prototypes in feature space: class embeddings predict class means of image features.

Changpinyo, Chao & Sha, "Predicting Visual Exemplars of Unseen Classes for Zero-Shot Learning",
ICCV 2017, with a linear map in place of their kernel regression. Regressing towards the image
features, and not from them, avoids hubs (Zhang et al., "Learning a Deep Embedding Model for
Zero-Shot Learning", CVPR 2017).
"""

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.data import Features
from vgse.zsl.features import Training, unit_rows
from vgse.zsl.models.bilinear import Embeddings, Score


def fit_prototype(
    training: Training, embeddings: Embeddings, *, seed: int = 0, ridge: float, shrinkage: float
) -> Score:
    """Ridge regression from embeddings to class means, then the nearest mean by cosine.

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
