"""What was run and on what (the head), whether it can be trusted (health), and its files."""

import re
from typing import Any

import numpy as np

from vgse.report.page import number
from vgse.report.pictures import ClassPictures
from vgse.report.run_files import RunFiles

NUM_MOSAIC = 30


def head(run: RunFiles, pictures: ClassPictures) -> dict[str, Any]:
    """Title, result, mosaic of classes and the strip of facts."""
    tiles = []
    if "class_names" in run.embeddings and pictures.pictures is not None:
        names = run.embeddings["class_names"]
        chosen = np.unique(np.linspace(0, len(names) - 1, NUM_MOSAIC).astype(int))
        tiles = [pictures.tile(str(names[row])) for row in chosen]
    return {
        "run": run.name,
        "data_set": data_set_name(run),
        "summary": run.evaluation.get("summary"),
        "facts": [fact for fact in _facts(run) if fact[1] or fact[2]],
        "tiles": tiles,
    }


def data_set_name(run: RunFiles) -> str:
    """The name that the manifest gave, else the folder above the shards, else the run's name."""
    name = _part(run.health, "data").get("name")
    if name:
        return str(name)
    shards = str(_part(run.config, "data").get("shards", ""))
    parts = [part for part in re.split(r"[/\\]+", shards) if not part.endswith(":")]
    parts = [p for p in parts if p not in ("", ".", "..", "shards", "manifest.json")]
    return parts[-1] if parts else run.name


def _facts(run: RunFiles) -> list[tuple[str, str, str]]:
    """(term, value, note); empty where it is not known."""
    roles = [str(role) for role in run.embeddings.get("roles", ())]
    unseen, val = roles.count("unseen"), roles.count("val")
    counts = run.split_counts
    images = sum(counts.values())
    splits = [f"{count:,} {split.replace('_', ' ')}" for split, count in counts.items()]
    clusters = _part(run.config, "model").get("num_clusters", "")
    if "embeddings" in run.embeddings:
        clusters = number(run.embeddings["embeddings"].shape[1], 0)
    epochs = len(run.metrics) or _part(run.config, "training").get("epochs", "")
    return [
        (
            "Classes",
            f"{len(roles) - unseen:,} seen, {unseen:,} unseen" if roles else "",
            f"{val:,} of the seen for validation" if val else "",
        ),
        ("Images", f"{images:,}", ", ".join(splits)) if images else ("", "", ""),
        ("Clusters (D_v)", str(clusters), ""),
        ("Backbone", str(_part(run.config, "backbone").get("name", "")), ""),
        ("Epochs", str(epochs), ""),
        ("Seed", str(run.config.get("seed", "")), ""),
        ("Licence", "", str(_part(run.health, "data").get("licence") or "")),
    ]


def _part(config: dict[str, Any], field: str) -> dict[str, Any]:
    part = config.get(field)
    return part if isinstance(part, dict) else {}
