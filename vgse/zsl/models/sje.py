"""SJE: Akata et al., "Evaluation of Output Embeddings for Fine-Grained Image Classification".

CVPR 2015.
"""

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.features import Features


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
