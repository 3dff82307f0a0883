"""Number formats of a device."""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def resolve_precision(wanted: str, device: str) -> str:
    """The number format: "auto" becomes "bfloat16" where the hardware multiplies in it.

    Args:
        wanted: "auto", "float32" or "bfloat16".
        device: "cpu" or "cuda".

    Returns:
        "float32" or "bfloat16".
    """
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        # A head without a GPU decides for its GPU workers, and cannot ask theirs.
        known = torch.cuda.is_available()
        return "bfloat16" if not known or torch.cuda.is_bf16_supported() else "float32"
    capabilities: dict[str, bool] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # torch 2.13 and newer
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if fast else "float32"


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Mixed precision for bfloat16, nothing for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.partition(":")[0], torch.bfloat16)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LIMIT = 1 << 30


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed for the next tensor, and give it back to the system at the end.

    The GNU C library returns large blocks at once. A network on a CPU asks for the same ones again
    in its next layers, and the system fills each page with zeros anew: about a quarter of the time
    of a feature pass (EfficientNet-Lite0 at 64 pixels). Another C library is left as it is.
    """
    try:
        library = ctypes.CDLL(None)
        settings, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        yield
        return
    settings(_TRIM_THRESHOLD, _LIMIT)
    settings(_MMAP_THRESHOLD, _LIMIT)
    try:
        yield
    finally:
        trim(0)
