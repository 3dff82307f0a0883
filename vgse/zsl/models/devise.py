"""DeViSE: Frome et al., "DeViSE: A Deep Visual-Semantic Embedding Model", NIPS 2013."""

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.features import Features

MARGIN = 0.1


def summed_hinge(scores: Features, labels: NDArray[np.int64]) -> Features:
    """[B, S] slope of the mean over y ≠ y_n of [margin + F(x_n, y) − F(x_n, y_n)]₊.

    The paper sums over y; the mean lets one learning rate fit any number of classes.
    """
    images = np.arange(len(labels))
    violated = scores + MARGIN > scores[images, labels][:, None]
    violated[images, labels] = False
    slope = violated.astype(np.float32) / max(1, scores.shape[1] - 1)
    slope[images, labels] = -slope.sum(1)
    return slope
