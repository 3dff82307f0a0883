"""What a run folder holds, read once; every file is optional."""

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from vgse.errors import UserError

Arrays = dict[str, NDArray[Any]]

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
        self.command = MADE_BY[file]


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
    """The files of the run folder `run`."""
    if not any((run / file).is_file() for file in MADE_BY):
        raise UserError(f"{run}: holds no file of a run; give a folder that `{TRAIN}` wrote")
    embeddings = _arrays(run / "class_embeddings.npz")
    pictures = _arrays(run / "pictures.npz")
    if "class_names" in embeddings and "class_pictures" in pictures:
        num_names, num_rows = len(embeddings["class_names"]), len(pictures["class_pictures"])
        if num_names != num_rows:
            raise UserError(
                f"pictures.npz: class_pictures has {num_rows} rows for {num_names} class_names in "
                "class_embeddings.npz; write both with the same run"
            )
    # Of the large file of image features only two small arrays are read.
    images = _arrays(run / "image_features.npz", "split", "split_names")
    return RunFiles(
        name=run.resolve().name,
        config_text=_text(run / "config.yaml"),
        config=_mapping(run / "config.yaml", yaml.safe_load),
        metrics=_metrics(run / "metrics.jsonl"),
        evaluation=_mapping(run / "evaluation.json", json.loads),
        health=_mapping(run / "health.json", json.loads),
        embeddings=embeddings,
        relations=_arrays(run / "relations.npz"),
        pictures=pictures,
        split_counts={
            str(name): int((images["split"] == index).sum())
            for index, name in enumerate(images.get("split_names", ()))
            if "split" in images
        },
    )


def need(content: dict[str, Any], file: str, *fields: str) -> None:
    """Raise Missing unless `content`, read from `file`, has every one of `fields`."""
    if missing := find_missing(content, file, *fields):
        raise missing


def find_missing(content: dict[str, Any], file: str, *fields: str) -> Missing | None:
    """What `content`, read from `file`, lacks of `fields`."""
    if not content:
        return Missing(file)
    return next((Missing(file, field) for field in fields if field not in content), None)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        # KeyError and AttributeError: what numpy raises for archives that are none.
        raise _unreadable(path, error) from None
    except yaml.YAMLError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, reason: object) -> UserError:
    command = MADE_BY.get(path.name, TRAIN)
    line = " ".join(str(reason).split())
    return UserError(f"{path}: cannot be read ({line}); write it again with `{command}`")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with _reading(path):
        content = parse(_text(path))
    if content is not None and not isinstance(content, dict):
        raise _unreadable(path, "it is not a mapping of fields")
    return content or {}


def _metrics(path: Path) -> list[dict[str, Any]]:
    lines = [line for line in _text(path).splitlines() if line.strip()]
    epochs = []
    for number, line in enumerate(lines, 1):
        try:
            epoch = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # a run that was killed while it wrote
                break
            raise _unreadable(path, f"line {number}: {error}") from None
        if not isinstance(epoch, dict):
            raise _unreadable(path, f"line {number} is not a JSON object")
        epochs.append(epoch)
    return epochs


def _arrays(path: Path, *names: str) -> Arrays:
    """The arrays of an .npz file; with `names`, those of them that it holds."""
    if not path.is_file():
        return {}
    with _reading(path), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in names or file.files if name in file.files}
