"""How much of a step stays in memory for its backward pass, counted on a CPU."""

from __future__ import annotations

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
