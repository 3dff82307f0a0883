"""Where a trial keeps its last checkpoint, so that a new attempt goes on from there."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from vgse.files import disk_errors_in_one_line

_HISTORY = "history.json"


def store_checkpoint(
    search: Path, trial: str, checkpoint: Path, history: list[dict[str, Any]]
) -> None:
    """Copy a checkpoint with the rows of its epochs into the search folder; older ones go.

    The copy is renamed into place, so that a killed trial leaves a whole checkpoint or none.
    """
    home = search / "checkpoints" / trial
    epoch = int(history[-1]["epoch"])
    part, target = home / f".part-{epoch:05d}", home / f"epoch-{epoch:05d}"
    shutil.rmtree(part, ignore_errors=True)
    with disk_errors_in_one_line(home):
        shutil.copytree(checkpoint, part)
        (part / _HISTORY).write_text(json.dumps(history), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.rename(part, target)
    for old in home.iterdir():
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def latest_checkpoint(search: Path, trial: str) -> tuple[Path | None, list[dict[str, Any]]]:
    """The last checkpoint of a trial and the rows up to it; None and no rows without one."""
    for folder in sorted((search / "checkpoints" / trial).glob("epoch-*"), reverse=True):
        with suppress(OSError, json.JSONDecodeError):
            return folder, json.loads((folder / _HISTORY).read_text(encoding="utf-8"))
    return None, []


def delete_checkpoints(search: Path, trial: str) -> None:
    """Delete the checkpoints of a trial that has ended."""
    shutil.rmtree(search / "checkpoints" / trial, ignore_errors=True)
