"""Boxes that follow a picture's edges. Apart from patches.py, since loaders need no SciPy."""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2gray
from skimage.filters import sobel
from skimage.segmentation import watershed

from vgse.images.patches import row_counts

_MAX_ASPECT = 8  # longer images are squeezed for the watershed, so that its work stays bounded


def watershed_boxes(image: NDArray[np.uint8], num_patches: int) -> NDArray[np.float32]:
    """Bounding boxes of exactly N compact-watershed regions that follow the picture's edges.

    Seeds stand on a regular grid, so that every image gives the same number of regions
    (Neubert and Protzel, "Compact Watershed and Preemptive SLIC", ICPR 2014). A region that stays
    small, as on an empty background, gets a box of half a grid cell. Takes uint8 [H, W, 3];
    returns float32 [N, 4], (x0, y0, x1, y1) in 0..1, of positive area.
    """
    counts = row_counts(num_patches)
    height, width = image.shape[:2]
    side = max(128, 2 * max(len(counts), *counts))
    scale = side / min(height, width)
    size = (
        min(round(width * scale), _MAX_ASPECT * side),
        min(round(height * scale), _MAX_ASPECT * side),
    )
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    gradient = sobel(rgb2gray(cv2.resize(image, size, interpolation=way)))
    markers = np.zeros(gradient.shape, np.int32)
    label = 0
    for row, count in enumerate(counts):
        y = int((row + 0.5) * markers.shape[0] / len(counts))
        for column in range(count):
            label += 1
            markers[y, int((column + 0.5) * markers.shape[1] / count)] = label
    # A compactness of 0.001 follows the picture at this size; 0.01 is nearly the grid.
    regions = ndimage.find_objects(watershed(gradient, markers, compactness=1e-3))
    assert len(regions) == num_patches and None not in regions
    boxes = [[x.start, y.start, x.stop, y.stop] for y, x in regions]
    height, width = gradient.shape
    found = np.array(boxes) / [width, height, width, height]
    return _at_least(found, 0.5 / np.array([max(counts), len(counts)])).astype(np.float32)


def _at_least(boxes: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes [N, 4] grown about their centres to sides (x, y), and moved back into 0..1."""
    low, high = boxes[:, :2], boxes[:, 2:]
    low = np.where(high - low < sides, (low + high - sides) / 2, low).clip(0, 1 - sides)
    return np.concatenate([low, np.maximum(high, low + sides)], 1)
