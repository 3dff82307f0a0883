"""The batch that a GPU is fastest with, found by trying."""

import functools
import time
from collections.abc import Callable

import torch

from vgse.images.backbones import Backbone
from vgse.images.devices import autocast

GAIN = 1.05  # a doubled batch that is not this much faster an item is not worth its memory


def find_batch_size(
    try_step: Callable[[int], None],
    start: int,
    limit: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Double the batch while it fits and pays; returns the last one that did both.

    `try_step` does the work with a batch of the given size and waits until it is done. Every size
    is tried twice and timed the second time: kernels are chosen on the first.
    torch.OutOfMemoryError where not even `start` fits.
    """
    size, best, rate = min(start, limit), 0, 0.0
    while True:
        try:
            try_step(size)
            before = clock()
            try_step(size)
            found = size / max(1e-9, clock() - before)
        except torch.OutOfMemoryError:
            if not best:
                raise
            found = 0.0
        if not found:  # outside of the handler, whose traceback keeps the step's tensors alive
            torch.cuda.empty_cache()
        if found < GAIN * rate:
            return best
        best, rate = size, found
        if size == limit:
            return best
        size = min(2 * size, limit)


@functools.lru_cache(maxsize=4)
def pictures_a_pass(backbone: Backbone, side: int, precision: str, device: str) -> int:
    """Pictures of a side in pixels that a GPU takes at once, without gradients, to be fastest."""

    def try_step(size: int) -> None:
        pictures = torch.zeros(size, 3, side, side, dtype=torch.uint8, device=device)
        with torch.inference_mode(), autocast(device, precision):
            backbone(pictures)
        torch.cuda.synchronize(device)

    return find_batch_size(try_step, 128, 4096)
