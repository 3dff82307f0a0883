"""Bilinear compatibility F(x, y) = x W a_y and the SGD that SJE, ALE, DeViSE and ConSE share."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.data import Features, Indices
from vgse.zsl.features import Training, unit_rows

Embeddings = NDArray[np.float64]
Score = Callable[[Features, Embeddings], NDArray[np.floating]]
"""(features [M, D], embeddings of candidate classes [K, D_e]) -> scores [M, K]."""

Slope = Callable[[Features, Indices], Features]
"""(scores of a batch [B, S], labels [B]) -> gradient [B, S] of each image's loss by its scores."""

EPOCHS, MIN_STEPS, MAX_STEPS = 10, 500, 2000
BATCH = 64
COMPONENTS = 256  # principal axes of the features that learn; the rest carry little but noise


def span(embeddings: Embeddings) -> tuple[Embeddings, Embeddings]:
    """Coordinates [S, R] and an orthonormal basis [R, D_e] of the rows, R = min(S, D_e).

    Long embeddings of few classes: closed forms solve R equations in place of D_e.
    """
    num_classes, size = embeddings.shape
    if size <= num_classes:
        return embeddings, np.eye(size)
    left, values, basis = np.linalg.svd(embeddings, full_matrices=False)
    return left * values, basis


def fit_bilinear(
    training: Training,
    embeddings: Embeddings,
    *,
    slope: Slope,
    seed: int = 0,
    weight_decay: float = 0.01,
    learning_rate: float = 3.0,
) -> Score:
    """Mini-batch SGD on a loss with `slope` and on `weight_decay` · ½‖W‖²; returns x W̄ aᵀ.

    Features have unit mean length here and embeddings unit length. It starts at W = 0 and takes
    images in an order fixed by `seed`. The rate falls linearly to 0, and W̄ is the mean of W over
    the second half of the steps, which is steadier than the last W.
    """
    features = training.features[:, :COMPONENTS]
    scale = float(1 / np.sqrt(np.mean(np.square(features).sum(1))))
    classes = unit_rows(embeddings)
    gram = classes @ classes.T
    # Steps never leave the span of the seen embeddings, so V [D, S] of W = V A learns in place
    # of W, and a step costs the same for any size of embedding.
    weights = np.zeros((features.shape[1], len(classes)), np.float32)
    mean = np.zeros_like(weights)
    per_epoch = max(1, len(features) // BATCH)
    total = min(max(EPOCHS * per_epoch, MIN_STEPS), MAX_STEPS)
    # Beyond 1 / weight_decay a step would overshoot W = 0.
    peak = min(learning_rate, 0.9 / max(weight_decay, 1e-12))
    rng = np.random.default_rng(seed)
    batches: list[Indices] = []
    for step in range(total):
        if not batches:
            batches = np.array_split(rng.permutation(len(features)), per_epoch)
        chosen = batches.pop()
        batch = features[chosen] * scale
        gradient = slope(batch @ (weights @ gram), training.labels[chosen])
        rate = peak * (1 - step / total)
        weights *= 1 - rate * weight_decay
        weights -= (rate / len(chosen)) * (batch.T @ gradient)
        if step >= total // 2:
            mean += weights
    mean /= total - total // 2
    matrix = np.zeros((training.features.shape[1], embeddings.shape[1]), np.float32)
    matrix[: len(mean)] = scale * (mean @ classes)
    return lambda features, embeddings: features @ (matrix @ unit_rows(embeddings).T)
