"""The head of the page: what was run, on what, and the result in a sentence."""

import re
from typing import Any

import numpy as np

from vgse.report.page import esc, fold, hero, notice
from vgse.report.pictures import ClassPictures
from vgse.report.run_files import Missing, RunFiles

NUM_MOSAIC = 30


def header(run: RunFiles, pictures: ClassPictures) -> str:
    """Title, result, mosaic of classes and the strip of facts."""
    summary = run.evaluation.get("summary")
    result = (
        f'<p class="result">{esc(summary)}</p>'
        if summary
        else '<p class="result muted">This run has not been evaluated yet.</p>'
    )
    return hero(
        f"VGSE run report · {run.name}",
        data_set_name(run),
        result,
        facts(run),
        aside=_mosaic(run, pictures),
    )


def data_set_name(run: RunFiles) -> str:
    """The name that the manifest gave, else the folder above the shards, else the run's name."""
    name = _part(run.health, "data").get("name")
    if name:
        return str(name)
    data = _part(run.config, "data")
    parts = [p for p in re.split(r"[/\\]+", str(data.get("shards", ""))) if not p.endswith(":")]
    parts = [p for p in parts if p not in ("", ".", "..", "shards", "manifest.json")]
    return parts[-1] if parts else run.name


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Terms and escaped values of the strip; what is not known is left out."""
    backbone, model = _part(run.config, "backbone"), _part(run.config, "model")
    rows = [("Classes", _classes(run)), ("Images", _images(run))]
    rows.append(("Clusters (D_v)", _clusters(run, model)))
    rows.append(("Backbone", esc(backbone.get("name", ""))))
    epochs = len(run.metrics) or _part(run.config, "training").get("epochs", "")
    rows.append(("Epochs", esc(epochs)))
    rows.append(("Seed", esc(run.config.get("seed", ""))))
    licence = _part(run.health, "data").get("licence")
    rows.append(("Licence", f"<small>{esc(licence)}</small>" if licence else ""))
    return [(term, value) for term, value in rows if value]


def _part(config: dict[str, Any], field: str) -> dict[str, Any]:
    part = config.get(field)
    return part if isinstance(part, dict) else {}


def _classes(run: RunFiles) -> str:
    if "roles" not in run.embeddings:
        return ""
    roles = [str(role) for role in run.embeddings["roles"]]
    unseen, val = roles.count("unseen"), roles.count("val")
    text = f"{len(roles) - unseen:,} seen, {unseen:,} unseen"
    return text + (f" <small>{val:,} of the seen for validation</small>" if val else "")


def _images(run: RunFiles) -> str:
    total = sum(run.split_counts.values())
    if not total:
        return ""
    parts = ", ".join(
        f"{count:,} {esc(name.replace('_', ' '))}" for name, count in run.split_counts.items()
    )
    return f"{total:,} <small>{parts}</small>"


def _clusters(run: RunFiles, model: dict[str, Any]) -> str:
    if "embeddings" in run.embeddings:
        return f"{run.embeddings['embeddings'].shape[1]:,}"
    return esc(model.get("num_clusters", ""))


def _mosaic(run: RunFiles, pictures: ClassPictures) -> str:
    if "class_names" not in run.embeddings or pictures.pictures is None:
        return ""
    names = [str(name) for name in run.embeddings["class_names"]]
    chosen = np.unique(np.linspace(0, len(names) - 1, NUM_MOSAIC).astype(int))
    tags = "".join(pictures.tag(names[row]) for row in chosen)
    return f'<div class="mosaic" aria-hidden="true">{tags}</div>'


NPZ = """import numpy as np

run = np.load("class_embeddings.npz")
names = run["class_names"]   # [C]
phi = run["embeddings"]      # [C, D_v]
unseen = phi[run["unseen"]]  # [U, D_v]

relations = np.load("relations.npz")
mixtures = relations["smo"]  # [U, S]
"""
MAT = """from scipy.io import loadmat

splits = loadmat("VGSE_SMO_splits.mat")

# The .mat keeps the usual layout [D_v, C].
phi = splits["att"].T

# Matlab counts from 1.
unseen_images = splits["test_unseen_loc"].ravel() - 1
"""


def files_section(run: RunFiles) -> str:
    """Two snippets and the folded configuration."""
    config = (
        fold("config.yaml", f'<pre class="scroll">{esc(run.config_text)}</pre>')
        if run.config_text
        else notice(Missing("config.yaml"))
    )
    return (
        "<p>From Python, in the run folder:</p>"
        f'<div class="two"><pre class="scroll">{esc(NPZ)}</pre><pre class="scroll">{esc(MAT)}</pre>'
        f"</div><p>The configuration of this run:</p>{config}"
    )
