"""What suits a device: its number format, its memory, and the batch it is fastest with."""

import ctypes
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from vgse.images.backbones import Backbone


def resolve_precision(wanted: str, device: str) -> str:
    """The number format; "auto" becomes "bfloat16" where the hardware multiplies in it."""
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        # A head without a GPU decides for its GPU workers, and cannot ask theirs.
        known = torch.cuda.is_available()
        return "bfloat16" if not known or torch.cuda.is_bf16_supported() else "float32"
    # torch 2.13 and newer
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if fast else "float32"


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Mixed precision for bfloat16, nothing for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.partition(":")[0], torch.bfloat16)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed for the next tensor, and give it back to the system at the end."""
    # glibc returns large blocks at once: a quarter of a feature pass would wait for fresh pages.
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        for setting in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            library.mallopt(setting, 1 << 30)
    try:
        yield
    finally:
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)


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
        if found < 1.05 * rate:  # a smaller gain is not worth the memory
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
