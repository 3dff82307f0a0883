"""What every method but ours does with a sample: a bare tar reader, and two ways to cut patches.

Imports neither `vgse` nor `shards`: the peers' own environment runs this file, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import functional as TF

BATCH_SIZE = 32
BLOCK = 512
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WAYS = ("read", "pil", "opencv")

Raw = tuple[bytes, NDArray[np.float32]]  # JPEG, boxes [N, 4] in 0..1
Part = tuple[int, int]  # images, bytes handed over


def one_thread() -> None:
    """Keep torch and OpenCV to the calling thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def bare_tar(path: str | Path) -> Iterator[tuple[bytes, bytes]]:
    """(JPEG, JSON) of every sample of a tar that alternates .jpg and .json, unchecked."""
    with open(path, "rb") as file:
        pair = []
        while (header := file.read(BLOCK)).strip(b"\0"):
            size = int(header[124:135], 8)
            pair.append(file.read(size))
            file.seek(-size % BLOCK, 1)
            if len(pair) == 2:
                yield pair[0], pair[1]
                pair = []


def boxes_of(text: bytes) -> NDArray[np.float32]:
    """Boxes [N, 4] of a sample's JSON."""
    return np.array(json.loads(text)["boxes"], np.float32)


def pil_patches(image: Image.Image, boxes: NDArray[np.float32], side: int) -> torch.Tensor:
    """Float patches [N, 3, P, P], normalised: crop, resize and convert one by one."""
    patches = []
    for x0, y0, x1, y1 in pixels(boxes, image.height, image.width):
        patch = TF.resized_crop(image, y0, x0, y1 - y0, x1 - x0, [side, side])
        patches.append(TF.normalize(TF.to_tensor(patch), MEAN, STD, inplace=True))
    return torch.stack(patches)


def opencv_patches(
    jpegs: Iterable[bytes],
    boxes: Iterable[NDArray[np.float32]],
    out: NDArray[np.uint8],
    scratch: NDArray[np.uint8],
) -> None:
    """Decode into `scratch`, cut into `out` uint8 [B, N, P, P, 3]; nothing else is allocated."""
    size = out.shape[2:4]
    for jpeg, places, patches in zip(jpegs, boxes, out, strict=True):
        image = simplejpeg.decode_jpeg(jpeg, buffer=scratch)
        corners = pixels(places, *image.shape[:2])
        for patch, (x0, y0, x1, y1) in zip(patches, corners, strict=True):
            cv2.resize(image[y0:y1, x0:x1], size, dst=patch, interpolation=cv2.INTER_LINEAR)


def pixels(boxes: NDArray[np.float32], height: int, width: int) -> list[list[int]]:
    """Boxes in whole pixels, (x0, y0, x1, y1)."""
    scale = np.array([width, height, width, height], np.float32)
    rounded: list[list[int]] = (boxes * scale + 0.5).astype(np.int64).tolist()
    return rounded


def assemble(samples: list[Raw], way: str, side: int, scratch: NDArray[np.uint8]) -> Any:
    """A batch of patches, float [B, N, 3, P, P] or uint8 [B, N, P, P, 3]; "read": the JPEGs."""
    if way == "read":
        return b"".join(jpeg for jpeg, _ in samples)
    if way == "pil":
        pictures = [Image.open(BytesIO(jpeg)).convert("RGB") for jpeg, _ in samples]
        pairs = zip(pictures, samples, strict=True)
        return torch.stack([pil_patches(image, boxes, side) for image, (_, boxes) in pairs])
    out = np.empty((len(samples), len(samples[0][1]), side, side, 3), np.uint8)
    opencv_patches((j for j, _ in samples), (b for _, b in samples), out, scratch)
    return out


def batched(samples: Iterator[Raw], way: str, side: int) -> Iterator[Part]:
    """Batches made of samples: images, bytes."""
    scratch = np.empty(1 << 23, np.uint8)
    while chunk := list(islice(samples, BATCH_SIZE)):
        if way == "read":
            yield len(chunk), sum(len(jpeg) for jpeg, _ in chunk)
        else:
            yield len(chunk), assemble(chunk, way, side, scratch).nbytes


def endless(epoch: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """One epoch after the other."""
    while True:
        yield from epoch()


def consume(batches: Iterator[Part], count: int) -> Part:
    """Take batches until there are `count` images."""
    images = handed = 0
    while images < count:
        number, size = next(batches)
        images, handed = images + number, handed + size
    return images, handed
