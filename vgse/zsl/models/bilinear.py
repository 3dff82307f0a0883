"""Bilinear compatibility F(x, y) = x W a_y, by SGD on the losses of SJE, ALE, DeViSE and ConSE."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from vgse.zsl.data import Features, Indices
from vgse.zsl.features import Training, unit_rows

Embeddings = NDArray[np.float64]
Score = Callable[[Features, Embeddings], NDArray[np.floating]]
"""(features [M, D], embeddings of candidate classes [K, D_e]) -> scores [M, K]."""

Params = dict[str, float]

Slope = Callable[[Features, Indices], Features]
"""(scores of a batch [B, S], labels [B]) -> gradient [B, S] of each image's loss by its scores."""

EPOCHS, MIN_STEPS, MAX_STEPS = 10, 300, 2000
BATCH = 64
DEVISE_MARGIN = 0.1
COMPONENTS = 256  # principal axes of the features that learn; the rest carry little but noise


def span(embeddings: Embeddings) -> tuple[Embeddings, Embeddings]:
    """Coordinates [S, R] and an orthonormal basis [R, D_e] of the rows, R = min(S, D_e)."""
    num_classes, size = embeddings.shape
    if size <= num_classes:
        return embeddings, np.eye(size)
    left, values, basis = np.linalg.svd(embeddings, full_matrices=False)
    return left * values, basis


def fit_bilinear(
    training: Training,
    embeddings: Embeddings,
    seed: int,
    grid: Sequence[Params],
    *,
    slope: Slope,
    learning_rate: float = 3.0,
) -> list[Score]:
    """(weight_decay) -> x W̄ aᵀ, learned by mini-batch SGD on a loss with `slope` and on
    `weight_decay` · ½‖W‖².

    Features have unit mean length here and embeddings unit length. The rate falls linearly to 0,
    and W̄ is the mean of W over the second half of the steps, steadier than the last W.
    """
    features: Features = training.features[:, :COMPONENTS]
    scale = np.float32(1 / np.sqrt(np.mean(np.square(features).sum(1))))
    features = features * scale
    # Steps never leave the span of the seen embeddings.
    units = unit_rows(embeddings).astype(np.float64)
    coordinates, basis = (np.asarray(part, np.float32) for part in span(units))
    transposed = np.ascontiguousarray(coordinates.T)
    per_epoch = max(1, len(features) // BATCH)
    total = min(max(EPOCHS * per_epoch, MIN_STEPS), MAX_STEPS)

    # One loop for all G entries of the grid, since threads wait for each other between products.
    decay = np.array([params["weight_decay"] for params in grid])[:, None, None]
    # Beyond 1 / weight_decay a step would overshoot W = 0.
    peak = np.minimum(learning_rate, 0.9 / np.maximum(decay, 1e-12))
    rates = peak * (1 - np.arange(total) / total).reshape(-1, 1, 1, 1)  # [total, G, 1, 1]
    shrink = (1 - rates * decay).astype(np.float32)
    labels = np.tile(training.labels, (len(grid), 1))
    weights = np.zeros((len(grid), features.shape[1], len(transposed)), np.float32)
    mean, update = np.zeros_like(weights), np.empty_like(weights)
    rng = np.random.default_rng(seed)
    batches: list[Indices] = []
    for step in range(total):
        if not batches:
            batches = np.array_split(rng.permutation(len(features)), per_epoch)
        chosen = batches.pop()
        batch = features[chosen]
        scores = (batch @ weights @ transposed).astype(np.float32, copy=False)  # [G, B, S]
        of_images = scores.reshape(-1, scores.shape[-1])
        gradient = slope(of_images, labels[:, chosen].ravel()).reshape(scores.shape)
        gradient *= (rates[step] / len(chosen)).astype(np.float32)
        weights *= shrink[step]
        weights -= np.matmul(batch.T, gradient @ coordinates, out=update)
        if step >= total // 2:
            mean += weights

    def score_of(mean: Features) -> Score:
        matrix = scale * (mean / (total - total // 2)) @ basis  # [COMPONENTS, D_e]
        return lambda features, embeddings: (
            features[:, : len(matrix)] @ (matrix @ unit_rows(embeddings).T)
        )

    return [score_of(each) for each in mean]


def sje_slope(scores: Features, labels: Indices) -> Features:
    """max_y [Δ(y_n, y) + F(x_n, y) − F(x_n, y_n)]₊ with 0/1 loss Δ (Akata et al., CVPR 2015)."""
    starts = np.arange(0, scores.size, scores.shape[1])  # of rows, all in one: faster to index
    augmented = scores.ravel() + 1
    augmented[starts + labels] -= 1
    slope = np.zeros_like(augmented)
    # Where the right class wins, the two cancel.
    slope[starts + augmented.reshape(scores.shape).argmax(1)] = 1
    slope[starts + labels] -= 1
    return slope.reshape(scores.shape)


def ale_slope(scores: Features, labels: Indices) -> Features:
    """(l_r / r) Σ_y [Δ(y_n, y) + F(x_n, y) − F(x_n, y_n)]₊ with l_r = Σ_{i≤r} 1/i.

    r, the number of classes that violate the margin, is not sampled. Akata et al., TPAMI 2016.
    """
    violated = _violated(scores, labels, 1)
    rank = violated.sum(1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, scores.shape[1] + 1))])
    weight = harmonic[rank] / np.maximum(rank, 1)
    return _balanced((violated * weight[:, None]).astype(np.float32), labels)


def devise_slope(scores: Features, labels: Indices) -> Features:
    """Mean over y ≠ y_n of [margin + F(x_n, y) − F(x_n, y_n)]₊.

    Frome et al., NIPS 2013, sum over y; with the mean one learning rate fits any number of classes.
    """
    violated = _violated(scores, labels, DEVISE_MARGIN).astype(np.float32)
    return _balanced(violated / max(1, scores.shape[1] - 1), labels)


def _violated(scores: Features, labels: Indices, margin: float) -> np.ndarray:
    images = np.arange(len(labels))
    violated: np.ndarray = scores + margin > scores[images, labels][:, None]
    violated[images, labels] = False
    return violated


def _balanced(slope: Features, labels: Indices) -> Features:
    """What the other classes push down, the right class is pushed up."""
    slope[np.arange(len(labels)), labels] = -slope.sum(1)
    return slope


def cross_entropy_slope(scores: Features, labels: Indices) -> Features:
    """[B, S] slope of −ln softmax(scores)[label]."""
    slope = np.asarray(softmax(scores, axis=1), np.float32)
    slope[np.arange(len(labels)), labels] -= 1
    return slope


@lru_cache(maxsize=8)
def _classifier(training: Training, seed: int) -> Score:
    """Softmax regression over the seen classes: the same for every row of the table."""
    [score] = fit_bilinear(
        training,
        np.eye(len(training.counts)),
        seed,
        [{"weight_decay": 1e-4}],
        slope=cross_entropy_slope,
        learning_rate=30.0,
    )
    return score


def fit_conse(
    training: Training, embeddings: Embeddings, seed: int, grid: Sequence[Params]
) -> Iterator[Score]:
    """(top) -> cosine between a class and the mean embedding of an image's `top` likeliest seen
    classes (Norouzi et al., ICLR 2014)."""
    classifier, seen = _classifier(training, seed), embeddings

    def fit(top: float) -> Score:
        count = int(top)

        def score(features: Features, embeddings: Embeddings) -> NDArray[np.floating]:
            shares = softmax(classifier(features, np.eye(len(seen))), axis=1)
            if count < shares.shape[1]:
                floor = np.partition(shares, -count, axis=1)[:, -count]
                shares = np.where(shares >= floor[:, None], shares, 0)
            return unit_rows(shares @ seen) @ unit_rows(embeddings).T

        return score

    return (fit(**params) for params in grid)
