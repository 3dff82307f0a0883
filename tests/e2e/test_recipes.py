"""Recipes of published data sets: their commands, on tiny trees of the same layout."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from shards.__main__ import main
from shards.config import PackConfig
from shards.datasets.classes import read_words
from shards.datasets.dataset import read_source
from shards_trees import awa2_tree, sun_tree, write
from vgse.config import load_config

ROOT = Path(__file__).parents[2]
CUB = ["002.Laysan_Albatross", "022.Chuck_will_Widow", "105.Whip_poor_Will", "141.Artic_Tern"]


def cub_tree(root: Path) -> Path:
    files = [f"{name}/{name[4:]}_{n}.jpg" for name in CUB for n in range(5)]
    for n, file in enumerate(files):
        write(root / "images" / file, n)
    tables = {
        "images.txt": files,
        "image_class_labels.txt": [1 + CUB.index(file.split("/")[0]) for file in files],
        "classes.txt": CUB,
    }
    for name, rows in tables.items():
        (root / name).write_text("".join(f"{i} {row}\n" for i, row in enumerate(rows, 1)))
    return root


TREES: dict[str, Callable[[Path], Path]] = {"awa2": awa2_tree, "cub": cub_tree, "sun": sun_tree}


def write_xlsa17(kind: str, root: Path, folder: Path) -> list[str]:
    """att_splits.mat and res101.mat of a tree, the last class unseen, and the unseen class."""
    (folder / "unseen.txt").parent.mkdir(parents=True)
    data = read_source(PackConfig(source=f"{kind}:{root}", out="", unseen_fraction=0.3))
    names = [entry.name for entry in data.classes]
    files = sorted(p for p in root.rglob("*.jpg"))
    of_source = {image.source: image.class_name for image in data.images}
    known = [file for file in files if str(file.relative_to(root)) in of_source]
    labels = np.array([names.index(of_source[str(f.relative_to(root))]) for f in known]) + 1
    unseen = labels == labels.max()
    val = ~unseen & (labels == np.unique(labels)[0])
    test = ~unseen & (np.arange(len(labels)) % 5 == 1)
    parts = {
        "trainval_loc": ~unseen & ~test,
        "train_loc": ~unseen & ~test & ~val,
        "val_loc": val & ~test,
        "test_seen_loc": test,
        "test_unseen_loc": unseen,
    }
    cells = [np.array([[text] for text in texts], object) for texts in (names, map(str, known))]
    locations = {name: np.flatnonzero(mask)[:, None] + 1 for name, mask in parts.items()}
    att = {"att": np.eye(len(names)), "allclasses_names": cells[0], **locations}
    scipy.io.savemat(folder / "att_splits.mat", att)
    images = {"features": np.eye(len(known)), "labels": labels[:, None], "image_files": cells[1]}
    scipy.io.savemat(folder / "res101.mat", images)
    return [names[labels.max() - 1]]


@pytest.mark.parametrize("kind", TREES)
def test_the_command_of_a_recipe_packs_its_data_set(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ROOT / "configs" / f"{kind}.yaml"
    config = load_config(recipe)
    text = recipe.read_text().replace("\\\n#", "")
    pack = re.search(r"^#\s+python -m shards (pack .*)$", text, re.M)
    assert pack, "the head of a recipe holds its commands"
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    root = TREES[kind](tmp_path / "data" / kind.upper())
    unseen = write_xlsa17(kind, root, tmp_path / "data" / "xlsa17" / "data" / kind.upper())
    assert main([*shlex.split(pack[1]), "--workers", "1"]) == 0
    manifest = json.loads(Path(config.data.shards, "manifest.json").read_text())
    roles = {entry["name"]: entry["role"] for entry in manifest["classes"]}
    assert [name for name, role in roles.items() if role == "unseen"] == unseen
    words = {entry["name"]: entry["words"] for entry in manifest["classes"]}
    if kind == "cub":
        mapped = read_words(str(ROOT / "configs" / "cub" / "words.yaml"))
        assert {name: words[name] for name in mapped} == mapped
        assert words["002.Laysan_Albatross"] == ["laysan", "albatross"]
