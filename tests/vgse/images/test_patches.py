"""Where patches are and how they are cut: grid_sample and OpenCV must agree, and stay inside."""

import tracemalloc

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray

from vgse.images.patches import cut_patches, cut_patches_opencv, grid_boxes
from vgse.images.watershed import watershed_boxes


def random_boxes(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    corners = np.sort(rng.random((count, 2, 2)), axis=1)  # low before high, of x and of y
    return corners.reshape(count, 4).astype(np.float32)


def noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def cut_one(image: NDArray[np.uint8], boxes: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """cut_patches of one image, laid out as OpenCV does: float32 [N, P, P, 3]."""
    images = torch.from_numpy(image).permute(2, 0, 1)[None]
    patches = cut_patches(images, torch.from_numpy(boxes)[None], size)
    return patches[0].permute(0, 2, 3, 1).numpy()


def largest_gap(image: NDArray[np.uint8], boxes: NDArray[np.float32], size: int) -> float:
    other = cut_patches_opencv(image, boxes, size).astype(np.float32)
    return float(np.abs(cut_one(image, boxes, size) - other).max())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (47, 101), (130, 33), (384, 512)])
@pytest.mark.parametrize("size", [1, 7, 32, 96])
def test_grid_sample_and_opencv_cut_the_same_patches(height: int, width: int, size: int) -> None:
    rng = np.random.default_rng(height + size)
    image, boxes = noise(rng, height, width), random_boxes(rng, 40)
    assert largest_gap(image, boxes, size) <= 1.0


def test_boxes_at_borders_beyond_them_and_of_no_size_are_cut_alike() -> None:
    boxes = np.array(
        [
            [0, 0, 1, 1],
            [0, 0, 0.01, 0.01],
            [0.99, 0.99, 1, 1],
            [1, 1, 1, 1],
            [0, 0, 0, 0],
            [0.5, 0.5, 0.5, 0.5],
            [0.3, 0, 0.3, 1],
            [-0.2, -0.2, 0.4, 1.3],
        ],
        np.float32,
    )
    image = noise(np.random.default_rng(0), 50, 70)
    assert largest_gap(image, boxes, 16) <= 1.0


def test_another_alignment_or_a_shifted_box_would_exceed_the_tolerance() -> None:
    rng = np.random.default_rng(1)
    image, boxes = noise(rng, 64, 80), random_boxes(rng, 20)
    right = cut_patches_opencv(image, boxes, 24).astype(np.float32)
    shifted = cut_one(image, boxes + np.array([1 / 80, 0, 1 / 80, 0], np.float32), 24)
    assert np.abs(shifted - right).max() > 20
    whole = np.array([[0, 0, 1, 1]], np.float32)
    corners = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(),
        (24, 24),
        mode="bilinear",
        align_corners=True,
    )
    aligned = corners[0].permute(1, 2, 0).numpy()
    assert np.abs(aligned - cut_patches_opencv(image, whole, 24)[0]).max() > 20


@pytest.mark.parametrize("size", [8, 50])
def test_a_patch_never_reads_across_the_edge_of_its_box(size: int) -> None:
    image = np.full((60, 60, 3), 255, np.uint8)
    image[20:40, 10:30] = 0  # the box is black, all around it is white
    box = np.array([[10 / 60, 20 / 60, 30 / 60, 40 / 60]], np.float32)
    assert cut_one(image, box, size).max() < 0.1
    wider = np.array([[9 / 60, 20 / 60, 30 / 60, 40 / 60]], np.float32)
    assert cut_one(image, wider, size).max() > 20  # one pixel more would have shown


def test_boxes_are_rounded_to_the_nearest_pixels_and_kept_inside() -> None:
    image = noise(np.random.default_rng(4), 40, 50)
    corners = {
        (10.4, 7.6, 30.4, 27.6): (10, 8, 30, 28),
        (9.6, 8.4, 29.6, 28.4): (10, 8, 30, 28),
        (-5.0, -5.0, 20.0, 20.0): (0, 0, 20, 20),
        (49.9, 39.9, 60.0, 60.0): (49, 39, 50, 40),
    }
    for given, (x0, y0, x1, y1) in corners.items():
        box = (np.array([given]) / np.array([50.0, 40.0, 50.0, 40.0])).astype(np.float32)
        size = x1 - x0  # the patch is then the crop itself
        np.testing.assert_array_equal(cut_patches_opencv(image, box, size)[0], image[y0:y1, x0:x1])
        np.testing.assert_allclose(cut_one(image, box, size)[0], image[y0:y1, x0:x1], atol=1e-2)


def test_every_image_of_a_batch_is_cut_by_its_own_boxes() -> None:
    rng = np.random.default_rng(2)
    images = np.stack([noise(rng, 40, 56) for _ in range(3)])
    boxes = np.stack([random_boxes(rng, 5) for _ in range(3)])
    batch = cut_patches(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(boxes), 12)
    assert batch.shape == (3, 5, 3, 12, 12)
    for image, own, patches in zip(images, boxes, batch, strict=True):
        np.testing.assert_allclose(patches.permute(0, 2, 3, 1), cut_one(image, own, 12), atol=1e-3)


def test_half_precision_images_are_cut_at_the_same_places() -> None:
    rng = np.random.default_rng(3)
    image, boxes = noise(rng, 200, 300), random_boxes(rng, 10)
    floats = torch.from_numpy(image).permute(2, 0, 1)[None].to(torch.bfloat16)
    half = cut_patches(floats, torch.from_numpy(boxes)[None], 16)
    full = cut_patches(floats.float(), torch.from_numpy(boxes)[None], 16)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().max() <= 1.0  # rounding of the result alone


@pytest.mark.gpu
def test_a_gpu_cuts_the_patches_of_the_cpu_and_waits_for_nothing() -> None:
    rng = np.random.default_rng(2)
    images = torch.from_numpy(np.stack([noise(rng, 60, 47) for _ in range(3)]))
    images = images.permute(0, 3, 1, 2)
    boxes = torch.from_numpy(np.stack([random_boxes(rng, 5) for _ in range(3)]))
    on_gpu = images.cuda(), boxes.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = cut_patches(*on_gpu, 12)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (found.cpu() - cut_patches(images, boxes, 12)).abs().max() <= 1.0


def test_nine_grid_boxes_are_three_by_three_of_half_the_side() -> None:
    expected = [(x, y, x + 0.5, y + 0.5) for y in (0, 0.25, 0.5) for x in (0, 0.25, 0.5)]
    np.testing.assert_allclose(grid_boxes(9, 0.5), expected, atol=1e-7)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("num_patches", range(1, 21))
def test_any_number_of_grid_boxes_lies_inside_and_covers_the_image(
    num_patches: int, overlap: float
) -> None:
    boxes = grid_boxes(num_patches, overlap)
    assert boxes.shape == (num_patches, 4)
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(np.unique(boxes, axis=0)) == num_patches
    points = np.random.default_rng(0).random((200, 2))
    inside = (points[:, None] >= boxes[:, :2] - 1e-6) & (points[:, None] <= boxes[:, 2:] + 1e-6)
    assert np.any(np.all(inside, 2), 1).all()


def test_grid_boxes_name_what_is_wrong_with_their_arguments() -> None:
    with pytest.raises(ValueError, match="num_patches is 0"):
        grid_boxes(0)
    with pytest.raises(ValueError, match=r"overlap is 1\.0"):
        grid_boxes(4, 1.0)


def drawn_circle() -> NDArray[np.uint8]:
    image = np.full((128, 128, 3), 255, np.uint8)
    cv2.circle(image, (40, 44), 30, (200, 30, 30), -1)
    return image


PICTURES = {
    "astronaut": lambda: skimage.data.astronaut(),
    "coffee": lambda: skimage.data.coffee(),
    "cat": lambda: skimage.data.chelsea(),
    "rocket": lambda: skimage.data.rocket(),
    "drawn": drawn_circle,
    "one colour": lambda: np.full((90, 60, 3), 77, np.uint8),
    "tiny": lambda: noise(np.random.default_rng(0), 3, 5),
    "one pixel": lambda: np.zeros((1, 1, 3), np.uint8),
    "long": lambda: noise(np.random.default_rng(0), 10, 600),
    "tall": lambda: noise(np.random.default_rng(0), 900, 4),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_watershed_gives_exactly_n_boxes_of_positive_area(name: str) -> None:
    image = PICTURES[name]()
    for num_patches in range(1, 17):
        boxes = watershed_boxes(image, num_patches)
        assert boxes.shape == (num_patches, 4)
        assert boxes.min() >= 0
        assert boxes.max() <= 1
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_the_watershed_gives_the_same_boxes_again_and_leaves_the_image_alone() -> None:
    image = skimage.data.chelsea()
    before = image.copy()
    first = watershed_boxes(image, 9)
    np.testing.assert_array_equal(first, watershed_boxes(image, 9))
    np.testing.assert_array_equal(image, before)


def test_a_very_long_image_needs_no_more_memory_than_a_picture() -> None:
    image = np.zeros((2, 2000, 3), np.uint8)  # 128 x 128,000 pixels, were its shape kept
    tracemalloc.start()
    try:
        assert watershed_boxes(image, 9).shape == (9, 4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6


def overlap_of(boxes: NDArray[np.float32], box: tuple[float, float, float, float]) -> float:
    """Largest intersection over union of any box with `box`."""
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, 2:], box[2:])
    common = np.clip(high - low, 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    own = (box[2] - box[0]) * (box[3] - box[1])
    return float((common / (areas + own - common)).max())


def test_watershed_boxes_follow_a_drawn_edge_better_than_the_grid() -> None:
    drawn = (10 / 128, 14 / 128, 70 / 128, 74 / 128)  # the circle's bounding box
    followed = overlap_of(watershed_boxes(drawn_circle(), 4), drawn)
    assert followed > 0.9
    assert followed > overlap_of(grid_boxes(4, 0.0), drawn) + 0.2
    assert followed > overlap_of(grid_boxes(4, 0.5), drawn) + 0.2
