"""SJE: Akata et al., "Evaluation of Output Embeddings for Fine-Grained Image Classification".

CVPR 2015.
"""

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.bilinear import Embeddings, Score, Steps, fit_bilinear
from vgse.zsl.features import Features, Training


def structured_hinge(scores: Features, labels: NDArray[np.int64]) -> Features:
    """[B, S] slope of max_y [Δ(y_n, y) + F(x_n, y) − F(x_n, y_n)]₊ with the 0/1 loss Δ."""
    images = np.arange(len(labels))
    augmented = scores + 1
    augmented[images, labels] -= 1
    worst = augmented.argmax(1)
    slope = np.zeros_like(scores)
    # Where the right class wins, worst is the label and the two cancel.
    slope[images, worst] += 1
    slope[images, labels] -= 1
    return slope


def fit_sje(
    training: Training,
    embeddings: Embeddings,
    *,
    seed: int = 0,
    weight_decay: float = 0.03,
) -> Score:
    """The compatibility x W aᵀ learned by SGD on the structured hinge loss and ½‖W‖²."""
    steps = Steps(weight_decay=weight_decay)
    return fit_bilinear(training, embeddings, structured_hinge, steps, seed)
