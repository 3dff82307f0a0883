"""Checkpoints without pickle: safetensors for tensors, JSON for the rest."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.train
import torch
from pyarrow.fs import FileSelector, FileType
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from distributed.storage import absolute, file_sizes, read_bytes
from distributed.train.filesystem import ray_storage
from shards import objects
from shards.objects import PATIENT, join_url
from vgse.config import loss_symbols
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
    """Write model, optimiser, neighbour queue and position into an empty folder, and `sums`, those
    of an epoch that is not finished. Random numbers need no state: they are drawn anew."""
    _save_tensors(folder / "model.safetensors", model.state_dict())
    _save_tensors(folder / "queue.safetensors", model.queue.state())
    learned = optimizer.state_dict()["state"]
    values = {f"{index}.{name}": v for index, row in learned.items() for name, v in row.items()}
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    _save_tensors(folder / "optimizer.safetensors", tensors)
    if sums is not None:
        _save_tensors(folder / "sums.safetensors", {"sums": sums})
    state = {
        "version": VERSION,
        "position": position,
        "fingerprint": fingerprint,
        "optimizer_scalars": {k: value for k, value in values.items() if k not in tensors},
        "losses": list(loss_symbols()),  # what the sums begin with
    }
    (folder / "state.json").write_text(json.dumps(state))


def load_checkpoint(
    folder: Path, model: TrainingModel, optimizer: torch.optim.Optimizer, fingerprint: str
) -> tuple[dict[str, Any], Tensor | None]:
    """Restore what `save_checkpoint` wrote, in place; returns the position and the sums."""
    state = json.loads((folder / "state.json").read_text())
    anew = "start a new run with another --run-id"
    if state["version"] != VERSION:
        raise UserError(
            f"{folder}: checkpoint version {state['version']}, this program reads {VERSION}; {anew}"
        )
    if state["fingerprint"] != fingerprint:
        raise UserError(f"{folder}: made with another configuration or other data; {anew}")
    losses = list(loss_symbols())
    if state.get("losses", losses) != losses:
        raise UserError(
            f"{folder}: its losses are {', '.join(state['losses'])}, this program's are "
            f"{', '.join(losses)}; {anew}"
        )
    device = next(model.parameters()).device
    _fill_module(model, load_file(folder / "model.safetensors"), folder)
    queue = load_file(folder / "queue.safetensors")
    model.queue.restore({key: value.to(device) for key, value in queue.items()})
    restored = optimizer.state_dict()
    restored["state"] = learned = defaultdict[int, dict[str, Any]](dict)
    values = load_file(folder / "optimizer.safetensors") | state["optimizer_scalars"]
    for key, value in values.items():
        index, _, name = key.partition(".")
        learned[int(index)][name] = value
    optimizer.load_state_dict(restored)
    path = folder / "sums.safetensors"
    return state["position"], load_file(path)["sums"] if path.is_file() else None


def epoch_of(folder: Path) -> int:
    """Number, from 1, of the epoch that a checkpoint goes on with."""
    state = json.loads((folder / "state.json").read_text())
    return int(state["position"]["cursor"]["epoch"]) + 1


def load_module(folder: str | Path, prefix: str, module: nn.Module) -> None:
    """Fill a part of the model, such as "head", from a checkpoint in a folder or at a URL."""
    state = load(read_bytes(join_url(absolute(folder), "model.safetensors")))
    own = {k.removeprefix(prefix + "."): v for k, v in state.items() if k.startswith(prefix + ".")}
    _fill_module(module, own, folder)


def _fill_module(module: nn.Module, state: dict[str, Tensor], folder: str | Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError:
        other = sorted(state.keys() ^ module.state_dict().keys())
        if not other:
            raise
        raise UserError(
            f"{folder}: made by another version of this program, whose network has other weights "
            f"(such as {other[0]}); start a new run with another --run-id"
        ) from None


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)


_FILES = ("model.safetensors", "queue.safetensors", "optimizer.safetensors")


def damage(checkpoint: str) -> str | None:
    """What is wrong with a checkpoint, by the lengths of its files; None if nothing is."""
    sizes = file_sizes(checkpoint)
    for name in (*_FILES, "state.json"):
        if name not in sizes:
            return f"{name} is missing"
    for name in (*_FILES, *({"sums.safetensors"} & sizes.keys())):
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


def newest_sound(run: str, names: Sequence[str]) -> tuple[str | None, list[str]]:
    """The last of a run's checkpoints, oldest first, whose files are whole, and a line for each
    later one, which is damaged."""
    found, causes = None, {}
    for name in reversed(names):
        if (cause := damage(join_url(run, name))) is None:
            found = name
            break
        causes[name] = cause
    then = f"going on from {found}" if found else "training from the start"
    return found, [f"{name} is damaged ({cause}): {then}" for name, cause in causes.items()]


def remove_leftovers(run: str) -> None:
    """Delete what is half written of a run that is not under way: checkpoint folders that Ray does
    not know, and files that did not take their place."""
    parent, _, name = run.rpartition("/")
    path, filesystem = ray_storage(parent)
    known = set()
    try:
        found = ray.train.Result.from_path(f"{path}/{name}", filesystem)
        known = {Path(checkpoint.path).name for checkpoint, _ in found.best_checkpoints or []}
    except RuntimeError:  # the run has none yet
        pass
    except Exception as error:
        if type(error).__name__ != "CheckpointManagerInitializationError":
            raise
        raise UserError(
            f"{run}: Ray Train's list of its checkpoints is damaged, or one of them is missing; "
            "put the files back, or train anew with another --run-id"
        ) from error
    for entry in filesystem.get_file_info(FileSelector(f"{path}/{name}", allow_not_found=True)):
        is_folder = entry.type == FileType.Directory
        if is_folder and entry.base_name.startswith("checkpoint_") and entry.base_name not in known:
            filesystem.delete_dir(entry.path)
        elif not is_folder and entry.base_name.startswith(".") and entry.extension == "partial":
            filesystem.delete_file(entry.path)
