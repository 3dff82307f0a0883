"""How the model is wrapped where several workers train it."""

import inspect
from typing import Any

from torch.nn.parallel import DistributedDataParallel


def ddp_options() -> dict[str, Any]:
    """Keyword arguments of DistributedDataParallel.

    Gradients live in the buckets that are exchanged, so that nothing is copied; buckets travel
    while the rest of the backward pass runs. Buffers never change, so they stay where they are.
    `static_graph` would gain nothing: every parameter takes part in every step.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    # Its name up to torch 2.14, deprecated in 2.15.
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {"gradient_as_bucket_view": True, name: False}
