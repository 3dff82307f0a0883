"""Checkpoints that were damaged after they were written: a run goes on from one that is sound.

Ray keeps a list of a run's checkpoints beside them and takes its last without a look inside. A
file that is cut short, as a machine's sudden end leaves it, would fail every restart.
"""

import json
from typing import Any

from distributed.run_storage import file_sizes, join, read, write
from shards import storage
from shards.access import PATIENT

LIST = "checkpoint_manager_snapshot.json"  # Ray's
_FILES = ("model.safetensors", "queue.safetensors", "optimizer.safetensors")


def drop_damaged(run: str) -> list[str]:
    """Take damaged checkpoints off Ray's list of a run; returns a line for each.

    Raises:
        ValueError: the list itself is damaged.
    """
    where = join(run, LIST)
    try:
        content = json.loads(read(where))
        names = [str(row["checkpoint_dir_name"]) for row in content["checkpoint_results"]]
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: damaged ({type(error).__name__}), so the checkpoints beside it cannot be "
            "told apart; delete it to train from the start, or take another --run-id"
        ) from None
    found = {name: why for name in names if (why := damage(join(run, name)))}
    if not found:
        return []
    kept = _without(content, set(found))
    write(where, json.dumps(kept).encode())
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
        if _length(join(checkpoint, name), sizes[name]) != sizes[name]:
            return f"{name} is cut short"
    try:
        json.loads(read(join(checkpoint, "state.json")))
    except (UnicodeDecodeError, json.JSONDecodeError):
        return "state.json is cut short"
    return None


def _length(url: str, size: int) -> int | None:
    """The length that a safetensors file should have by its header; None without a whole one."""
    if size < 8:
        return None
    end = 8 + int.from_bytes(storage.read(url, 0, 8, retry=PATIENT), "little")
    if end > size:
        return None
    try:
        header = json.loads(storage.read(url, 8, end, retry=PATIENT))
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
