"""Number formats of a device."""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


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
    """Keep what is freed for the next tensor, and give it back to the system at the end.

    glibc returns large blocks at once, and a network on a CPU, which asks for the same ones again,
    waits for fresh pages: a quarter of a feature pass (EfficientNet-Lite0 at 64 pixels).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        for setting in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            library.mallopt(setting, 1 << 30)
    try:
        yield
    finally:
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)
