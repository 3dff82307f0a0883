"""What suits a device: its number format, its memory, and passes that fit into it."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


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


def in_passes(forward: Callable[[Tensor], Tensor], inputs: Tensor, most: int) -> tuple[Tensor, int]:
    """What `forward` gives for `inputs` [n, ...], at most `most` rows at a time; and that number,
    which is halved where memory runs out. torch.OutOfMemoryError where not even one row fits."""
    parts: list[Tensor] = []
    start = 0
    while start < len(inputs):
        try:
            parts.append(forward(inputs[start : start + most]))
            start += most
            continue
        except torch.OutOfMemoryError:
            if most == 1:
                raise
        # Outside of the handler, whose traceback keeps the pass's tensors alive.
        most //= 2
        torch.cuda.empty_cache()
    return torch.cat(parts), most


def padded_length(count: int) -> int:
    """`count` or up to an eighth more, one of eight lengths an octave: a GPU's libraries choose
    kernels anew for each length that they meet, which takes longer than the pass itself."""
    step = 1 << max(3, count.bit_length() - 4)
    return -(-count // step) * step
