"""Where an image's patches are (boxes), and how they are cut out, on the device or with OpenCV."""

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2gray
from skimage.filters import sobel
from skimage.segmentation import watershed
from torch import Tensor

WATERSHED_SIDE = 128
_MAX_ASPECT = 8  # longer images are squeezed for the watershed, so that its work stays bounded
_LEAST_CELL = 0.5  # smaller boxes are one colour blown up
COMPACTNESS = 1e-3  # follows the picture at WATERSHED_SIDE; 0.01 is nearly the grid


def _row_counts(num_patches: int) -> list[int]:
    if num_patches < 1:
        raise ValueError(f"num_patches is {num_patches}; an image needs at least 1 patch")
    num_rows = max(1, round(math.sqrt(num_patches)))
    base, extra = divmod(num_patches, num_rows)
    return [base + (row < extra) for row in range(num_rows)]


def grid_boxes(num_patches: int, overlap: float = 0.5) -> NDArray[np.float32]:
    """Boxes on a regular grid; 9 patches at overlap 0.5 are 3 x 3 boxes of half the side.

    Args:
        num_patches: N boxes, in round(sqrt(N)) rows.
        overlap: share of a box, in [0, 1), that it has in common with the next one.

    Returns:
        float32 [N, 4], (x0, y0, x1, y1) in 0..1.

    Raises:
        ValueError: num_patches < 1, or overlap outside [0, 1).
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; it must be at least 0 and below 1")

    def spans(count: int) -> list[tuple[float, float]]:
        side = 1 / (1 + (count - 1) * (1 - overlap))
        step = side * (1 - overlap)
        return [(i * step, min(1.0, i * step + side)) for i in range(count)]

    counts = _row_counts(num_patches)
    boxes = [
        (x0, y0, x1, y1)
        for (y0, y1), count in zip(spans(len(counts)), counts, strict=True)
        for x0, x1 in spans(count)
    ]
    return np.array(boxes, np.float32)


def watershed_boxes(image: NDArray[np.uint8], num_patches: int) -> NDArray[np.float32]:
    """Bounding boxes of exactly N compact-watershed regions that follow the picture's edges.

    Seeds stand on a regular grid, so that every image gives the same number of regions
    (Neubert and Protzel, "Compact Watershed and Preemptive SLIC", ICPR 2014). The image is
    first brought to a short side of 128 pixels: the result depends on the size. A region that
    stays small, as on an empty background, gets a box of half a grid cell.

    Args:
        image: uint8 [H, W, 3].
        num_patches: N.

    Returns:
        float32 [N, 4], (x0, y0, x1, y1) in 0..1, each of positive area.
    """
    counts = _row_counts(num_patches)
    height, width = image.shape[:2]
    side = max(WATERSHED_SIDE, 2 * max(len(counts), *counts))
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
    regions = ndimage.find_objects(watershed(gradient, markers, compactness=COMPACTNESS))
    assert len(regions) == num_patches and None not in regions
    boxes = [[x.start, y.start, x.stop, y.stop] for y, x in regions]
    height, width = gradient.shape
    found = np.array(boxes) / [width, height, width, height]
    return _at_least(found, _LEAST_CELL / np.array([max(counts), len(counts)])).astype(np.float32)


def _at_least(boxes: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes [N, 4] grown about their centres to sides (x, y), and moved back into 0..1."""
    low, high = boxes[:, :2], boxes[:, 2:]
    low = np.where(high - low < sides, (low + high - sides) / 2, low).clip(0, 1 - sides)
    return np.concatenate([low, np.maximum(high, low + sides)], 1)


def _to_pixels(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes in whole pixels, at least one pixel wide: corners (x, y) [..., 2], as floats."""
    size = torch.tensor([width, height], dtype=torch.float32, device=boxes.device)
    low = torch.floor(boxes[..., :2] * size + 0.5).clamp_(min=0)
    low = torch.minimum(low, size - 1)
    high = torch.floor(boxes[..., 2:] * size + 0.5)
    return low, torch.minimum(torch.maximum(high, low + 1), size)


def cut_patches(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut boxes out of images and resize them bilinearly, on the images' device.

    Boxes are rounded to whole pixels and samples never reach across a box's edge, so that
    the result equals cropping first and resizing then (`cut_patches_opencv`) within one
    grey level.

    Args:
        images: uint8 or float [B, 3, H, W]; uint8 values are kept in 0..255.
        boxes: [B, N, 4], (x0, y0, x1, y1) in 0..1.
        size: P, the side of a patch in pixels.

    Returns:
        Patches [B, N, 3, P, P] in the images' float type (float32 for uint8).
    """
    batch, num_patches = boxes.shape[:2]
    height, width = images.shape[-2:]
    # Half precision would move the grid by whole pixels, so sampling takes float32 at least.
    floats = images if images.dtype == torch.float64 else images.float()
    low, high = _to_pixels(boxes.float(), height, width)  # [B, N, 2]
    steps = (torch.arange(size, device=boxes.device, dtype=torch.float32) + 0.5) / size  # [P]
    points = low[..., None, :] + (high - low)[..., None, :] * steps[:, None]  # [B, N, P, 2]
    points = torch.minimum(torch.maximum(points, low[..., None, :] + 0.5), high[..., None, :] - 0.5)
    points = points * torch.tensor([2 / width, 2 / height], device=boxes.device) - 1
    grid = torch.stack(
        [
            points[..., 0].unsqueeze(2).expand(-1, -1, size, -1),
            points[..., 1].unsqueeze(3).expand(-1, -1, -1, size),
        ],
        dim=-1,
    )  # [B, N, P, P, 2]
    grid = grid.reshape(batch, num_patches * size, size, 2).to(floats.dtype)
    cut = F.grid_sample(floats, grid, "bilinear", "border", align_corners=False)
    cut = cut.to(images.dtype) if images.is_floating_point() else cut
    return cut.view(batch, -1, num_patches, size, size).transpose(1, 2)


def cut_patches_opencv(
    image: NDArray[np.uint8], boxes: NDArray[np.float32], size: int
) -> NDArray[np.uint8]:
    """The same patches as `cut_patches`, from one image on the CPU.

    Args:
        image: uint8 [H, W, 3].
        boxes: [N, 4], (x0, y0, x1, y1) in 0..1.
        size: P, the side of a patch in pixels.

    Returns:
        uint8 [N, P, P, 3].
    """
    height, width = image.shape[:2]
    low, high = _to_pixels(torch.from_numpy(np.array(boxes, np.float32)), height, width)
    patches = np.empty((len(boxes), size, size, 3), np.uint8)
    corners = torch.cat([low, high], -1).int().tolist()
    for patch, (x0, y0, x1, y1) in zip(patches, corners, strict=True):
        cv2.resize(image[y0:y1, x0:x1], (size, size), dst=patch, interpolation=cv2.INTER_LINEAR)
    return patches
