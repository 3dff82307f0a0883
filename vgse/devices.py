"""Number formats of a device."""

from contextlib import AbstractContextManager, nullcontext

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
