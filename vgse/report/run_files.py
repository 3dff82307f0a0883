"""What a run folder holds, read once; every file is optional."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vgse.errors import UserError
from vgse.files import read_arrays, read_mapping
from vgse.images.image_features import SPLITS, read_index

Arrays = dict[str, NDArray[Any]]

TRAIN = "python -m distributed train --config CONFIG"
MADE_BY = {
    **dict.fromkeys(("config.yaml", "metrics.jsonl", "health.json"), TRAIN),
    **dict.fromkeys(("class_embeddings.npz", "pictures.npz"), TRAIN),
    "relations.npz": "python -m vgse relate RUN",
    "evaluation.json": "python -m vgse evaluate RUN",
}
"""The command that writes each file of a run folder."""


class Missing(Exception):
    """A section lacks a file of the run folder, or a field of that file: its two arguments."""


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
    choice: dict[str, Any]
    knowledge: Arrays
    pictures: Arrays
    split_counts: dict[str, int]


def load_run(run: Path) -> RunFiles:
    """The files of the run folder `run`."""
    if not any((run / file).is_file() for file in MADE_BY):
        raise UserError(f"{run}: holds no file of a run; give a folder that `{TRAIN}` wrote")

    def arrays(file: str, *names: str) -> Arrays:
        path = run / file
        return read_arrays(path, *names, remedy=_remedy(file)) if path.is_file() else {}

    def mapping(file: str) -> dict[str, Any]:
        return read_mapping(run / file, remedy=_remedy(file))

    embeddings, pictures = arrays("class_embeddings.npz"), arrays("pictures.npz")
    if "class_names" in embeddings and "class_pictures" in pictures:
        num_names, num_rows = len(embeddings["class_names"]), len(pictures["class_pictures"])
        if num_names != num_rows:
            raise UserError(
                f"pictures.npz: class_pictures has {num_rows} rows for {num_names} class_names in "
                "class_embeddings.npz; write both with the same run"
            )
    config = run / "config.yaml"
    return RunFiles(
        name=run.resolve().name,
        config_text=config.read_text("utf-8", "replace") if config.is_file() else "",
        config=mapping("config.yaml"),
        metrics=_metrics(run / "metrics.jsonl"),
        evaluation=mapping("evaluation.json"),
        health=mapping("health.json"),
        embeddings=embeddings,
        relations=arrays("relations.npz"),
        choice=mapping("relations.json"),
        knowledge=arrays("knowledge.npz"),
        pictures=pictures,
        split_counts=_split_counts(run),
    )


def _split_counts(run: Path) -> dict[str, int]:
    index = read_index(run)
    if index is not None:
        return dict(zip(SPLITS, index.counts.sum(1).tolist(), strict=True))
    path = run / "image_features.npz"
    if not path.is_file():
        return {}
    # Of the large file of image features only two small arrays are read.
    images = read_arrays(path, "split", "split_names", remedy=_remedy(path.name))
    return {
        str(name): int((images["split"] == index).sum())
        for index, name in enumerate(images["split_names"])
    }


def need(content: dict[str, Any], file: str, *fields: str) -> None:
    """Raise Missing unless `content`, read from `file`, has every one of `fields`."""
    if not content:
        raise Missing(file, None)
    for field in fields:
        if field not in content:
            raise Missing(file, field)


def _metrics(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    epochs = []
    for index, line in enumerate(lines, 1):
        try:
            epoch = json.loads(line)
        except json.JSONDecodeError:
            epoch = None
        if isinstance(epoch, dict):
            epochs.append(epoch)
        elif index < len(lines):  # the last line may be cut: a run that was killed while it wrote
            raise UserError(
                f"{path}: cannot be read (line {index} is not a JSON object); {_remedy(path.name)}"
            )
    return epochs


def _remedy(file: str) -> str:
    return f"write it again with `{MADE_BY.get(file, TRAIN)}`"
