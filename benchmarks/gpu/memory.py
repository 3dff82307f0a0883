"""How much of a step stays in memory for its backward pass, and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vgse.images.backbones import build_backbone


def kept_bytes(backbone: str, side: int) -> tuple[float, float]:
    """What a forward pass of θ in bfloat16 keeps for the backward pass.

    Counted as the storages that autograd holds, weights themselves left out; what an operation
    takes for a moment is not in it.

    Returns:
        Bytes for each patch, and bytes that do not grow with their number.
    """
    network = build_backbone(backbone, "none").learn("all").train()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def count(num_patches: int) -> float:
        held: dict[int, Tensor] = {}  # tensors, so that no address is used twice

        def hold(values: Tensor) -> Tensor:
            held.setdefault(values.untyped_storage().data_ptr(), values)
            return values

        pictures = torch.zeros(num_patches, 3, side, side, dtype=torch.uint8)
        with (
            torch.autograd.graph.saved_tensors_hooks(hold, lambda values: values),
            torch.autocast("cpu", torch.bfloat16),
        ):
            features = network(pictures)
        own = [values for address, values in held.items() if address not in weights]
        del features
        return float(sum(values.untyped_storage().nbytes() for values in own))

    two, four = count(2), count(4)
    return (four - two) / 2, 2 * two - four


def optimiser_bytes(backbone: str) -> float:
    """Weights, gradients and AdamW's two moments in float32."""
    return 16.0 * sum(p.numel() for p in build_backbone(backbone, "none").parameters())


def largest_batch(try_step: Callable[[int], None], start: int, limit: int) -> int:
    """The largest size up to `limit` that fits, however fast: by doubling, then by halving the
    distance to what does not fit. 0 if nothing does."""
    fitting, failing, size = 0, limit + 1, min(start, limit)
    while fitting + 1 < failing:
        try:
            try_step(size)
            fitting = size
        except torch.OutOfMemoryError:
            failing = size
        if failing == size:  # outside of the handler, whose traceback keeps the tensors alive
            torch.cuda.empty_cache()
        size = min(2 * size, limit) if failing > limit else (fitting + failing) // 2
    return fitting
