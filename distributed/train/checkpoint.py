"""Checkpoints without pickle: safetensors for tensors, JSON for the rest."""

import json
from pathlib import Path
from typing import Any

import torch
from pyarrow.fs import FileSelector, FileSystem, FileType
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from distributed.storage import absolute, file_sizes, read_bytes, write_bytes
from distributed.train.filesystem import ray_storage
from shards import objects
from shards.objects import PATIENT, join_url
from vgse.errors import UserError
from vgse.training.model import TrainingModel

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
        raise UserError(
            f"{folder}: checkpoint version {state['version']}, this program reads {VERSION}; "
            "start a new run with another --run-id"
        )
    if state["fingerprint"] != fingerprint:
        raise UserError(
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
    state = load(read_bytes(join_url(absolute(folder), "model.safetensors")))
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


LIST = "checkpoint_manager_snapshot.json"  # Ray's
_FILES = ("model.safetensors", "queue.safetensors", "optimizer.safetensors")


def drop_damaged(run: str) -> list[str]:
    """Take damaged checkpoints off Ray's list of a run; returns a line for each.

    Raises:
        ValueError: the list itself is damaged.
    """
    where = join_url(run, LIST)
    try:
        content = json.loads(read_bytes(where))
        names = [str(row["checkpoint_dir_name"]) for row in content["checkpoint_results"]]
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: damaged ({type(error).__name__}), so the checkpoints beside it cannot be "
            "told apart; delete it to train from the start, or take another --run-id"
        ) from None
    found = {name: why for name in names if (why := damage(join_url(run, name)))}
    if not found:
        return []
    kept = _without(content, set(found))
    write_bytes(where, json.dumps(kept).encode())
    latest = kept["latest_checkpoint_result"]
    then = f"going on from {latest['checkpoint_dir_name']}" if latest else "training from the start"
    return [f"{name} is damaged ({why}): {then}" for name, why in found.items()]


def damage(checkpoint: str) -> str | None:
    """What is wrong with a checkpoint, by the lengths of its files; None if nothing is."""
    sizes = file_sizes(checkpoint)
    for name in (*_FILES, "state.json"):
        if name not in sizes:
            return f"{name} is missing"
    extra = [name for name in ("sums.safetensors",) if name in sizes]
    for name in (*_FILES, *extra):
        if _length(join_url(checkpoint, name), sizes[name]) != sizes[name]:
            return f"{name} is cut short"
    try:
        json.loads(read_bytes(join_url(checkpoint, "state.json")))
    except (UnicodeDecodeError, json.JSONDecodeError):
        return "state.json is cut short"
    return None


def _length(url: str, size: int) -> int | None:
    """The length that a safetensors file should have by its header; None without a whole one."""
    if size < 8:
        return None
    end = 8 + int.from_bytes(objects.read_bytes(url, 0, 8, retry=PATIENT), "little")
    if end > size:
        return None
    try:
        header = json.loads(objects.read_bytes(url, 8, end, retry=PATIENT))
        offsets = [row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    return end + max(offsets, default=0)


def _without(content: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Ray's list less some checkpoints; what is not about them stays as it is."""
    rows, indices = content["checkpoint_results"], content["checkpoint_report_indices"]
    kept = [
        (row, index)
        for row, index in zip(rows, indices, strict=True)
        if row["checkpoint_dir_name"] not in names
    ]
    latest = content["latest_checkpoint_result"]
    if latest and latest["checkpoint_dir_name"] in names:
        latest = kept[-1][0] if kept else None
    return {
        **content,
        "checkpoint_results": [row for row, _ in kept],
        "checkpoint_report_indices": [index for _, index in kept],
        "latest_checkpoint_result": latest,
    }


_LIST = "checkpoint_manager_snapshot.json"  # Ray's: what is in it can be resumed


def remove_leftovers(run: str) -> None:
    """Delete what is half written of a run that is not under way: checkpoint folders that Ray does
    not know, and lists of checkpoints that did not take their place."""
    parent, _, name = run.rpartition("/")
    path, filesystem = ray_storage(parent)
    folder = f"{path}/{name}"
    known = _committed(filesystem, f"{folder}/{_LIST}")
    for entry in filesystem.get_file_info(FileSelector(folder, allow_not_found=True)):
        name = entry.path.rstrip("/").rpartition("/")[2]
        is_folder = entry.type == FileType.Directory
        if is_folder and name.startswith("checkpoint_") and name not in known:
            filesystem.delete_dir(entry.path)
        elif not is_folder and name.startswith(f".{_LIST}."):
            filesystem.delete_file(entry.path)


def _committed(filesystem: FileSystem, path: str) -> set[str]:
    """Names of the checkpoints that are complete; none before there is a list of them."""
    if filesystem.get_file_info(path).type == FileType.NotFound:
        return set()
    with filesystem.open_input_stream(path) as stream:
        content = json.loads(stream.read())
    entries = [*content["checkpoint_results"], content["latest_checkpoint_result"]]
    return {entry["checkpoint_dir_name"] for entry in entries if entry}
