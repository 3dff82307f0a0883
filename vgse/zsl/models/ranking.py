"""The losses of SJE, ALE and DeViSE, as slopes for `fit_bilinear`.

Each takes the scores F of a batch [B, S] and the labels y_n [B], and gives the gradient [B, S] of
each image's loss by its scores.
"""

import numpy as np

from vgse.zsl.data import Features, Indices

DEVISE_MARGIN = 0.1


def sje_slope(scores: Features, labels: Indices) -> Features:
    """max_y [Δ(y_n, y) + F(x_n, y) − F(x_n, y_n)]₊ with the 0/1 loss Δ.

    Akata et al., "Evaluation of Output Embeddings for Fine-Grained Image Classification", CVPR
    2015.
    """
    images = np.arange(len(labels))
    augmented = scores + 1
    augmented[images, labels] -= 1
    slope = np.zeros_like(scores)
    # Where the right class wins, the two cancel.
    slope[images, augmented.argmax(1)] += 1
    slope[images, labels] -= 1
    return slope


def ale_slope(scores: Features, labels: Indices) -> Features:
    """(l_r / r) Σ_y [Δ(y_n, y) + F(x_n, y) − F(x_n, y_n)]₊ with l_r = Σ_{i≤r} 1/i.

    r is the number of classes that violate the margin, counted exactly and not sampled. Akata et
    al., "Label-Embedding for Image Classification", TPAMI 2016.
    """
    violated = _violated(scores, labels, 1)
    rank = violated.sum(1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, scores.shape[1] + 1))])
    weight = harmonic[rank] / np.maximum(rank, 1)
    return _balanced((violated * weight[:, None]).astype(np.float32), labels)


def devise_slope(scores: Features, labels: Indices) -> Features:
    """Mean over y ≠ y_n of [margin + F(x_n, y) − F(x_n, y_n)]₊.

    The paper sums over y; the mean lets one learning rate fit any number of classes. Frome et al.,
    "DeViSE: A Deep Visual-Semantic Embedding Model", NIPS 2013.
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
