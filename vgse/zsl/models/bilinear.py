"""Bilinear compatibility F(x, y) = x W a_y and the SGD that SJE, ALE and DeViSE share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.features import Features, Training, unit_rows

Embeddings = NDArray[np.float64]
Score = Callable[[Features, Embeddings], NDArray[np.floating]]
"""(features [M, D], embeddings of candidate classes [K, D_e]) -> scores [M, K]."""

Slope = Callable[[Features, NDArray[np.int64]], Features]
"""(scores of a batch [B, S], labels [B]) -> gradient [B, S] of each image's loss by its scores."""


@dataclass(frozen=True)
class BilinearScore:
    """Scores x W aᵀ, with embeddings a at unit length where the model learned them so."""

    matrix: NDArray[np.floating]  # W [D, D_e]
    unit: bool = False

    def __call__(self, features: Features, embeddings: Embeddings) -> NDArray[np.floating]:
        """Scores [M, K] of `features` [M, D] against `embeddings` [K, D_e]."""
        candidates = unit_rows(embeddings) if self.unit else embeddings
        return features @ (self.matrix @ candidates.T).astype(np.float32)


def span(embeddings: Embeddings) -> tuple[Embeddings, Embeddings]:
    """Coordinates [S, R] and an orthonormal basis [R, D_e] of the rows, R = min(S, D_e).

    Long embeddings of few classes: closed forms solve R equations in place of D_e.
    """
    num_classes, size = embeddings.shape
    if size <= num_classes:
        return embeddings, np.eye(size)
    left, values, basis = np.linalg.svd(embeddings, full_matrices=False)
    return left * values, basis


@dataclass(frozen=True)
class Steps:
    """How the SGD runs: on features of unit mean length and embeddings of unit length."""

    epochs: int = 10
    min_steps: int = 500
    max_steps: int = 2000
    learning_rate: float = 3.0
    weight_decay: float = 0.01
    """Weight of ½‖W‖² beside the loss; a large one lowers the learning rate to 0.9 / weight."""
    batch_size: int = 64
    components: int = 256
    """Principal axes of the features that learn; the rest carry little but noise."""


def fit_bilinear(
    training: Training, embeddings: Embeddings, *, slope: Slope, seed: int = 0, **settings: Any
) -> Score:
    """Mini-batch SGD on a loss with `slope`, and on ½‖W‖²; returns x W̄ aᵀ.

    It starts at W = 0 and takes images in an order fixed by `seed`; `settings` are those of
    `Steps`. The rate falls linearly to 0, and W̄ is the mean of W over the second half of the steps,
    which is steadier than the last W.
    """
    steps = Steps(**settings)
    features = training.features[:, : steps.components]
    scale = float(1 / np.sqrt(np.mean(np.square(features).sum(1))))
    classes = unit_rows(embeddings)
    gram = classes @ classes.T
    # Steps never leave the span of the seen embeddings, so V [D, S] of W = V A learns in place
    # of W, and a step costs the same for any size of embedding.
    weights = np.zeros((features.shape[1], len(classes)), np.float32)
    mean = np.zeros_like(weights)
    per_epoch = max(1, len(features) // steps.batch_size)
    total = min(max(steps.epochs * per_epoch, steps.min_steps), steps.max_steps)
    # Beyond 1 / weight_decay a step would overshoot W = 0.
    peak = min(steps.learning_rate, 0.9 / max(steps.weight_decay, 1e-12))
    rng = np.random.default_rng(seed)
    batches: list[NDArray[np.int64]] = []
    for step in range(total):
        if not batches:
            batches = np.array_split(rng.permutation(len(features)), per_epoch)
        chosen = batches.pop()
        batch = features[chosen] * scale
        gradient = slope(batch @ (weights @ gram), training.labels[chosen])
        rate = peak * (1 - step / total)
        weights *= 1 - rate * steps.weight_decay
        weights -= (rate / len(chosen)) * (batch.T @ gradient)
        if step >= total // 2:
            mean += weights
    mean /= total - total // 2
    matrix = np.zeros((training.features.shape[1], embeddings.shape[1]), np.float32)
    matrix[: len(mean)] = scale * (mean @ classes)
    return BilinearScore(matrix, unit=True)
