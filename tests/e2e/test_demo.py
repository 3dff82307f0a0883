"""The data set that ships: whole, licensed, with a word vector for every class."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.manifest import Manifest, load_manifest
from vgse.knowledge.words import load_word_vectors

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
CIFAR = ROOT / "configs" / "cifar100"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return load_manifest(str(DEMO / "shards"))


def _members(manifest: Manifest, suffix: str) -> Iterator[tuple[str, bytes]]:
    for shard in manifest.shards:
        with tarfile.open(DEMO / "shards" / shard.file) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream and member.name.endswith(suffix):
                    yield shard.split, stream.read()


@pytest.fixture(scope="module")
def samples(manifest: Manifest) -> list[tuple[str, dict[str, Any]]]:
    return [(split, json.loads(data)) for split, data in _members(manifest, ".json")]


def _icon_set(sample: dict[str, Any]) -> str:
    return PurePosixPath(sample["source"]).name.split("__")[0]


def test_the_demo_has_enough_classes_of_every_role(manifest: Manifest) -> None:
    roles = Counter(entry.role for entry in manifest.classes)
    assert len(manifest.classes) >= 150
    assert roles["unseen"] >= 36
    assert 0.2 <= roles["unseen"] / len(manifest.classes) <= 0.25
    assert roles["val"] == round(0.2 * (roles["train"] + roles["val"]))


def test_roles_are_those_of_the_files_beside_the_shards(manifest: Manifest) -> None:
    for role in ("unseen", "val"):
        listed = (DEMO / f"{role}.txt").read_text("utf-8").split()
        assert sorted(e.name for e in manifest.classes if e.role == role) == sorted(listed)


def test_every_class_has_at_least_six_drawings(
    samples: list[tuple[str, dict[str, Any]]],
) -> None:
    counts = Counter(sample["class"] for _, sample in samples)
    assert min(counts.values()) >= 6
    assert max(counts.values()) <= 12


def test_seen_classes_have_training_and_test_pictures_and_unseen_ones_only_test_pictures(
    manifest: Manifest, samples: list[tuple[str, dict[str, Any]]]
) -> None:
    splits: dict[str, set[str]] = {}
    for split, sample in samples:
        splits.setdefault(sample["class"], set()).add(split)
    for entry in manifest.classes:
        wanted = {"test_unseen"} if entry.role == "unseen" else {"train", "test_seen"}
        assert splits[entry.name] == wanted, entry.name


def test_every_picture_has_exactly_num_patches_boxes_inside_it(
    manifest: Manifest, samples: list[tuple[str, dict[str, Any]]]
) -> None:
    boxes = np.array([sample["boxes"] for _, sample in samples])  # [n, N, 4], or it raises
    assert manifest.num_patches == 9
    assert boxes.shape == (len(samples), manifest.num_patches, 4)
    assert boxes.min() >= 0 and boxes.max() <= 1
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_every_picture_is_128_pixels_on_white(manifest: Manifest) -> None:
    for _, data in _members(manifest, ".jpg"):
        with Image.open(io.BytesIO(data)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels.shape == (128, 128, 3)
        border = np.concatenate([pixels[:2].ravel(), pixels[:, :2].ravel()])
        assert border.min() > 240
        assert pixels.min() < 200  # something is drawn


def test_no_training_picture_is_another_finish_of_a_test_picture(
    samples: list[tuple[str, dict[str, Any]]],
) -> None:
    family = {"fluent-emoji-flat": "fluent-emoji", "noto-v1": "noto"}
    sides: dict[tuple[str, str], set[str]] = {}
    drawings = 0
    for split, sample in samples:
        icon_set, icon = PurePosixPath(sample["source"]).stem.split("__")
        if split != "test_unseen" and (icon_set in family or icon_set in family.values()):
            sides.setdefault((family.get(icon_set, icon_set), icon), set()).add(split)
            drawings += 1
    assert drawings > 1.5 * len(sides)  # there are relatives to keep together
    assert all(len(splits) == 1 for splits in sides.values())


def test_licences_name_every_set_of_the_pictures(
    samples: list[tuple[str, dict[str, Any]]],
) -> None:
    text = (DEMO / "LICENSES.md").read_text("utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| [")]
    named = {row[1].split("`")[1]: row for row in rows}
    counts = Counter(_icon_set(sample) for _, sample in samples)
    assert set(named) == set(counts)
    for icon_set, row in named.items():
        assert row[3] in {"Apache-2.0", "MIT", "CC-BY-4.0"}
        assert int(row[4]) == counts[icon_set]
    assert "GloVe" in text and "PDDL" in text
    for file in ("Apache-2.0.txt", "MIT-Microsoft.txt"):
        assert file in text and (DEMO / "licences" / file).is_file()


def test_the_demo_words_cover_all_classes_and_tell_them_apart(
    manifest: Manifest,
) -> None:
    found = load_word_vectors(str(DEMO / "words.txt"), manifest.class_words)
    assert found.vectors.shape == (len(manifest.classes), 50)
    with pytest.raises(ValueError, match="no vector for 1 of 1"):
        load_word_vectors(str(DEMO / "words.txt"), {"gryphon": ["gryphon"]})


def test_what_ships_is_at_most_15_megabytes() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file()]
    # A run leaves its feature cache beside the shards, and git ignores it.
    shipped = [f for f in files if not any(_is_cache(p) for p in f.relative_to(DEMO).parts)]
    assert sum(f.stat().st_size for f in shipped) <= 15_000_000


def _is_cache(name: str) -> bool:
    return name[0] in "._" or name == "features"


@pytest.mark.parametrize("split", ["main", "rand1"])
def test_cifar_words_cover_the_unseen_classes(split: str) -> None:
    assert len((CIFAR / "words.txt").read_text("utf-8").splitlines()) == 105
    names = (CIFAR / f"unseen-{split}.txt").read_text("utf-8").split()
    assert len(set(names)) == 20
    found = load_word_vectors(str(CIFAR / "words.txt"), {n: n.split("_") for n in names})
    assert found.class_names == names
