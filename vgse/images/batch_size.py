"""The largest batch that fits, found by trying."""

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

    Every size is tried twice and timed the second time: kernels are chosen on the first.

    Args:
        try_step: does the work with a batch of the given size, and waits until it is done.
        start: size to begin with.
        limit: size never exceeded.
        clock: gives seconds.
    """
    size, best, rate = min(start, limit), 0, 0.0
    while True:
        found = _items_per_second(try_step, size, clock, must_fit=best == 0)
        if found is None or found < GAIN * rate:
            return best
        best, rate = size, found
        if size == limit:
            return best
        size = min(2 * size, limit)


def largest_batch(try_step: Callable[[int], None], start: int, limit: int) -> int:
    """The largest size up to `limit` that fits, however fast: by doubling, then by halving the
    distance to what does not fit. 0 if nothing does."""
    fitting, failing, size = 0, limit + 1, min(start, limit)
    while fitting + 1 < failing:
        if _fits(try_step, size):
            fitting = size
        else:
            failing = size
        size = min(2 * size, limit) if failing > limit else (fitting + failing) // 2
    return fitting


@functools.lru_cache(maxsize=4)
def pictures_a_pass(backbone: Backbone, side: int, precision: str, device: str) -> int:
    """Pictures of a side in pixels that a GPU takes at once, without gradients, to be fastest.

    Found by trying, once a process.
    """

    def try_step(size: int) -> None:
        pictures = torch.zeros(size, 3, side, side, dtype=torch.uint8, device=device)
        with torch.inference_mode(), autocast(device, precision):
            backbone(pictures)
        torch.cuda.synchronize(device)

    return find_batch_size(try_step, 128, 4096)


def _items_per_second(
    try_step: Callable[[int], None], size: int, clock: Callable[[], float], must_fit: bool
) -> float | None:
    try:
        try_step(size)
        before = clock()
        try_step(size)
        return size / max(1e-9, clock() - before)
    except torch.OutOfMemoryError:
        if must_fit:
            raise
    # Outside of the handler, whose traceback would keep the tensors of the step alive.
    _forget()
    return None


def _fits(try_step: Callable[[int], None], size: int) -> bool:
    try:
        try_step(size)
        return True
    except torch.OutOfMemoryError:
        pass
    _forget()
    return False


def _forget() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
