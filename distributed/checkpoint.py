"""Checkpoints without pickle: safetensors for tensors, JSON for the rest."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from distributed.run_storage import absolute, join, read
from vgse.model import TrainingModel

VERSION = 2


def save_checkpoint(
    folder: Path,
    model: TrainingModel,
    optimizer: torch.optim.Optimizer,
    position: dict[str, Any],
    sums: Tensor | None,
    fingerprint: str,
) -> None:
    """Write model, optimiser, neighbour queue and position into an empty folder.

    `sums` are the figures of the epoch so far, where it is not finished.

    Random numbers need no state: they are drawn from (seed, epoch, rank) anew each epoch.
    """
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()},
        folder / "model.safetensors",
    )
    save_file(
        {k: v.cpu().contiguous() for k, v in model.queue.state().items()},
        folder / "queue.safetensors",
    )
    tensors, scalars = _split_state(optimizer.state_dict()["state"])
    save_file(tensors, folder / "optimizer.safetensors")
    if sums is not None:
        save_file({"sums": sums}, folder / "sums.safetensors")
    state = {
        "version": VERSION,
        "position": position,
        "fingerprint": fingerprint,
        "optimizer_scalars": scalars,
    }
    (folder / "state.json").write_text(json.dumps(state))


def load_checkpoint(
    folder: Path, model: TrainingModel, optimizer: torch.optim.Optimizer, fingerprint: str
) -> tuple[dict[str, Any], Tensor | None]:
    """Restore what `save_checkpoint` wrote, in place; returns the position and the sums.

    Raises:
        ValueError: another version, or a run with another configuration or other data.
    """
    state = json.loads((folder / "state.json").read_text())
    if state["version"] != VERSION:
        raise ValueError(
            f"{folder}: checkpoint version {state['version']}, this program reads {VERSION}; "
            "start a new run with another --run-id"
        )
    if state["fingerprint"] != fingerprint:
        raise ValueError(
            f"{folder}: made with another configuration or other data; "
            "start a new run with another --run-id"
        )
    device = next(model.parameters()).device
    model.load_state_dict(load_file(folder / "model.safetensors"))
    queue = load_file(folder / "queue.safetensors")
    model.queue.restore({key: value.to(device) for key, value in queue.items()})
    restored = optimizer.state_dict()
    restored["state"] = _join_state(
        load_file(folder / "optimizer.safetensors"), state["optimizer_scalars"]
    )
    optimizer.load_state_dict(restored)
    path = folder / "sums.safetensors"
    return state["position"], load_file(path)["sums"] if path.is_file() else None


def load_module(folder: str | Path, prefix: str, module: nn.Module) -> None:
    """Fill a part of the model, such as "head", from a checkpoint in a folder or at a URL."""
    state = load(read(join(absolute(folder), "model.safetensors")))
    own = {k.removeprefix(prefix + "."): v for k, v in state.items() if k.startswith(prefix + ".")}
    module.load_state_dict(own)


def _split_state(state: dict[int, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, scalars = {}, {}
    for index, values in state.items():
        for name, value in values.items():
            key = f"{index}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value.detach().cpu().contiguous()
            else:
                scalars[key] = value
    return tensors, scalars


def _join_state(tensors: dict[str, Tensor], scalars: dict[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **scalars}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    return state
