"""Where an image's patches are (boxes), and how they are cut out, on the device or with OpenCV."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vgse.errors import UserError


def row_counts(num_patches: int) -> list[int]:
    """Boxes in each row of a grid of N: round(sqrt(N)) rows that differ by one at most."""
    if num_patches < 1:
        raise UserError(f"num_patches is {num_patches}; an image needs at least 1 patch")
    num_rows = max(1, round(math.sqrt(num_patches)))
    base, extra = divmod(num_patches, num_rows)
    return [base + (row < extra) for row in range(num_rows)]


def grid_boxes(num_patches: int, overlap: float = 0.5) -> NDArray[np.float32]:
    """Boxes (x0, y0, x1, y1) in 0..1, float32 [N, 4], on a grid of round(sqrt(N)) rows.

    `overlap` is the share of a box, in [0, 1), that it has in common with the next one.
    """
    if not 0 <= overlap < 1:
        raise UserError(f"overlap is {overlap}; it must be at least 0 and below 1")

    def spans(count: int) -> list[tuple[float, float]]:
        side = 1 / (1 + (count - 1) * (1 - overlap))
        step = side * (1 - overlap)
        return [(i * step, min(1.0, i * step + side)) for i in range(count)]

    counts = row_counts(num_patches)
    boxes = [
        (x0, y0, x1, y1)
        for (y0, y1), count in zip(spans(len(counts)), counts, strict=True)
        for x0, x1 in spans(count)
    ]
    return np.array(boxes, np.float32)


def _sampled(low: Tensor, high: Tensor, length: int, size: int) -> Tensor:
    """Where `size` samples of a box lie along an axis of `length` pixels, in -1..1: [..., P].

    The edges `low` and `high`, in 0..1, are rounded to whole pixels, at least one apart.
    """
    # No tensor is made from numbers of the host, which a GPU would have to wait for.
    first = torch.floor(low * length + 0.5).clamp(0, length - 1)
    last = torch.floor(high * length + 0.5).clamp(max=length)
    last = torch.maximum(last, first + 1)[..., None]
    first = first[..., None]
    steps = (torch.arange(size, device=low.device, dtype=torch.float32) + 0.5) / size  # [P]
    points = first + (last - first) * steps
    points = torch.minimum(torch.maximum(points, first + 0.5), last - 0.5)
    return points * (2 / length) - 1


def cut_patches(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut boxes out of images and resize them bilinearly, on the images' device.

    Boxes are rounded to whole pixels and samples never reach across a box's edge, so that the
    result equals that of `cut_patches_opencv` within one grey level. Takes uint8 or float images
    [B, 3, H, W] and boxes [B, N, 4], (x0, y0, x1, y1) in 0..1; returns [B, N, 3, P, P] in the
    images' float type (float32 of the same values for uint8).
    """
    batch, num_patches = boxes.shape[:2]
    height, width = images.shape[-2:]
    # Half precision would move the grid by whole pixels, so sampling takes float32 at least.
    floats = images if images.dtype == torch.float64 else images.float()
    x0, y0, x1, y1 = boxes.float().unbind(-1)  # [B, N]
    across, down = _sampled(x0, x1, width, size), _sampled(y0, y1, height, size)  # [B, N, P]
    shape = (batch, num_patches, size, size)
    grid = torch.stack(
        [across.unsqueeze(2).expand(shape), down.unsqueeze(3).expand(shape)], dim=-1
    )  # [B, N, P, P, 2]
    grid = grid.reshape(batch, num_patches * size, size, 2).to(floats.dtype)
    cut = F.grid_sample(floats, grid, "bilinear", "border", align_corners=False)
    cut = cut.to(images.dtype) if images.is_floating_point() else cut
    return cut.view(batch, -1, num_patches, size, size).transpose(1, 2)


def _corners(boxes: NDArray[np.float32], height: int, width: int) -> list[list[int]]:
    """Boxes in whole pixels as above, in NumPy: torch's overhead would be felt at each picture."""
    size = np.array([width, height], np.float32)
    low = np.floor(boxes[:, :2] * size + np.float32(0.5)).clip(0)
    low = np.minimum(low, size - 1)
    high = np.floor(boxes[:, 2:] * size + np.float32(0.5))
    high = np.minimum(np.maximum(high, low + 1), size)
    corners: list[list[int]] = np.concatenate([low, high], 1).astype(np.int64).tolist()
    return corners


def cut_patches_opencv(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    size: int,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """The same patches, uint8 [N, P, P, 3], from one image [H, W, 3] on the CPU.

    `boxes` are [N, 4] in 0..1, `size` is P; `out` is written into where it is given.
    """
    import cv2  # not needed where patches are cut on an accelerator

    patches = np.empty((len(boxes), size, size, 3), np.uint8) if out is None else out
    corners = _corners(np.asarray(boxes, np.float32), *image.shape[:2])
    for patch, (x0, y0, x1, y1) in zip(patches, corners, strict=True):
        cv2.resize(image[y0:y1, x0:x1], (size, size), dst=patch, interpolation=cv2.INTER_LINEAR)
    return patches
