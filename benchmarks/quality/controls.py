"""Controls that have to fail: what training gives when it is lied to."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from distributed.features.cache import Unit, read_unit, write_unit


def shuffle_labels(folder: str | Path, units: Sequence[Unit], target: Path, seed: int) -> None:
    """Copy units of a feature cache with their labels dealt out anew at random.

    Class sizes stay, and nothing else changes: a trainer that gains from labels must not gain
    from these.
    """
    labels = torch.cat([read_unit(folder, unit).labels for unit in units])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    dealt = iter(labels[order])
    for unit in units:
        content = read_unit(folder, unit)
        tensors = {"images": content.images, "patches": content.patches, "rows": content.rows}
        tensors["labels"] = torch.stack([next(dealt) for _ in content.keys])
        write_unit(target, unit, tensors, {"keys": json.dumps(content.keys)})
