"""What a run folder holds, read once; every file is optional."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from vgse.errors import UserError

Arrays = dict[str, npt.NDArray[Any]]

TRAIN = "python -m distributed train --config CONFIG"
MADE_BY = {
    "config.yaml": TRAIN,
    "metrics.jsonl": TRAIN,
    "class_embeddings.npz": TRAIN,
    "pictures.npz": TRAIN,
    "health.json": TRAIN,
    "relations.npz": "python -m vgse relate RUN",
    "evaluation.json": "python -m vgse evaluate RUN",
}
"""The command that writes each file of a run folder."""


class Missing(Exception):
    """A section lacks a file of the run folder, or a field of that file."""

    def __init__(self, file: str, field: str | None = None) -> None:
        super().__init__(file, field)
        self.file = file
        self.field = field


@dataclass(frozen=True)
class RunFiles:
    """The files of one run folder; a file that is not there is empty."""

    name: str
    config_text: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any]
    health: dict[str, Any]
    embeddings: Arrays
    relations: Arrays
    pictures: Arrays
    split_counts: dict[str, int]


def load_run(run: Path) -> RunFiles:
    """The files of the run folder `run`.

    Raises ValueError for a folder without any known file, and for a file that cannot be read.
    """
    if not any((run / file).is_file() for file in MADE_BY):
        raise UserError(f"{run}: holds no file of a run; give a folder that `{TRAIN}` wrote")
    config_text = _text(run / "config.yaml")
    return RunFiles(
        name=run.resolve().name,
        config_text=config_text,
        config=_config(run / "config.yaml", config_text),
        metrics=_lines(run / "metrics.jsonl"),
        evaluation=_json(run / "evaluation.json"),
        health=_json(run / "health.json"),
        embeddings=_arrays(run / "class_embeddings.npz"),
        relations=_arrays(run / "relations.npz"),
        pictures=_arrays(run / "pictures.npz"),
        split_counts=_split_counts(run / "image_features.npz"),
    )


def need(content: dict[str, Any], file: str, *fields: str) -> None:
    """Raise Missing unless `content`, read from `file`, has every one of `fields`."""
    if not content:
        raise Missing(file)
    for field in fields:
        if field not in content:
            raise Missing(file, field)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _unreadable(path: Path, reason: object) -> ValueError:
    command = MADE_BY.get(path.name, TRAIN)
    line = " ".join(str(reason).split())
    return ValueError(f"{path}: cannot be read ({line}); write it again with `{command}`")


def _config(path: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise _unreadable(path, error) from None
    if not isinstance(content, dict):
        raise _unreadable(path, "it is not a mapping of fields")
    return content


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise _unreadable(path, error) from None
    if not isinstance(content, dict):
        raise _unreadable(path, "it is not a JSON object")
    return content


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = [line for line in _text(path).splitlines() if line.strip()]
    epochs = []
    for number, line in enumerate(lines, 1):
        try:
            epoch = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # a run that was killed while it wrote
                break
            raise _unreadable(path, f"line {number}: {error}") from None
        if not isinstance(epoch, dict):
            raise _unreadable(path, f"line {number} is not a JSON object")
        epochs.append(epoch)
    return epochs


def _arrays(path: Path) -> Arrays:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None


def _split_counts(path: Path) -> dict[str, int]:
    """Images of each split; of this large file only two small arrays are read."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            if "split" not in file.files or "split_names" not in file.files:
                return {}
            names = [str(name) for name in file["split_names"]]
            counts = np.bincount(file["split"].astype(np.int64), minlength=len(names))
            return {name: int(count) for name, count in zip(names, counts, strict=False)}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None
