"""Tiny data sets in every layout, made of real pictures."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from shards.config import PackConfig
from shards.manifest import Manifest, ShardEntry, load_labels, load_manifest, write_table
from shards.pack.pack import pack

NAMES = ["antelope", "blue_whale", "cat", "dog", "eel", "fox"]


def picture(number: int, size: tuple[int, int] = (40, 30)) -> NDArray[np.uint8]:
    """A smooth picture uint8 [H, W, 3] that differs from number to number."""
    small = np.random.default_rng(number).integers(0, 255, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def write(path: Path, number: int, size: tuple[int, int] = (40, 30)) -> Path:
    """Write picture(number) in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number, size)).save(path)
    return path


def flat_tree(root: Path, *, classes: list[str] = NAMES, images: int = 5) -> Path:
    """root/<class>/<class>_<n>.png."""
    for c, name in enumerate(classes):
        for n in range(images):
            write(root / name / f"{name.replace('/', '_')}_{n}.png", 100 * c + n)
    return root


def split_tree(root: Path) -> Path:
    """root/train/<class>/ with 4 and root/test/<class>/ with 2 images."""
    for c, name in enumerate(NAMES):
        for part, count in (("train", 4), ("test", 2)):
            for n in range(count):
                write(root / part / name / f"{n}.jpg", 100 * c + 10 * len(part) + n)
    return root


def awa2_tree(root: Path) -> Path:
    """The layout of Animals with Attributes 2, unseen: eel, killer+whale."""
    names = ["antelope", "cat", "dog", "eel", "fox", "killer+whale"]
    for c, name in enumerate(names):
        for n in range(5):
            write(root / "JPEGImages" / name / f"{name}_{n}.jpg", 100 * c + n)
    (root / "classes.txt").write_text("".join(f"{i:8d}\t{n}\n" for i, n in enumerate(names, 1)))
    (root / "testclasses.txt").write_text("eel\nkiller+whale\n")
    (root / "trainclasses.txt").write_text("antelope\ncat\ndog\nfox\n")
    return root


def cub_tree(root: Path) -> Path:
    """The layout of Caltech-UCSD Birds."""
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Tern", "004.Crow"]
    images, labels = [], []
    for c, name in enumerate(names, 1):
        for n in range(5):
            write(root / "images" / name / f"{name[4:]}_{n}.jpg", 100 * c + n)
            images.append(f"{len(images) + 1} {name}/{name[4:]}_{n}.jpg")
            labels.append(f"{len(labels) + 1} {c}")
    (root / "images.txt").write_text("\n".join(images) + "\n")
    (root / "image_class_labels.txt").write_text("\n".join(labels) + "\n")
    (root / "classes.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(names, 1)))
    return root


def sun_tree(root: Path) -> Path:
    """The layout of SUN: letters, classes, and sub-classes."""
    folders = ["a/abbey", "a/apse/indoor", "b/bakery", "b/bar", "i/inn/outdoor"]
    for c, folder in enumerate(folders):
        for n in range(5):
            write(root / "images" / folder / f"sun_{c}{n}.jpg", 100 * c + n)
    (root / "ClassName.txt").write_text("".join(f"/{folder}\n" for folder in folders))
    return root


def xlsa17_files(root: Path, folder: Path, **changed: Any) -> tuple[str, str]:
    """att_splits.mat and res101.mat for awa2_tree; keyword arguments replace fields."""
    names = ["antelope", "cat", "dog", "eel", "fox", "killer+whale"]
    prefix = "/BS/someone/work/AWA2/JPEGImages"
    files = [f"{prefix}/{name}/{name}_{n}.jpg" for name in names for n in range(5)]
    labels = np.repeat(np.arange(1, 7), 5)
    seen = [i for i, label in enumerate(labels, 1) if label in (1, 2, 3, 5)]
    fields: dict[str, Any] = {
        "allclasses_names": np.array([[name] for name in names], object),
        "att": np.zeros((4, 6)),
        "trainval_loc": [[i] for i in seen if i % 5 != 1],
        "train_loc": [[i] for i in seen if i % 5 != 1 and labels[i - 1] != 5],
        "val_loc": [[i] for i in seen if i % 5 != 1 and labels[i - 1] == 5],
        "test_seen_loc": [[i] for i in seen if i % 5 == 1],
        "test_unseen_loc": [[i] for i, label in enumerate(labels, 1) if label in (4, 6)],
    }
    content: dict[str, Any] = {
        "features": np.zeros((8, len(files))),
        "image_files": np.array([[file] for file in files], object),
        "labels": labels[:, None],
    }
    for key, value in changed.items():
        (content if key in content else fields)[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(folder / "att_splits.mat", fields)
    scipy.io.savemat(folder / "res101.mat", content)
    return str(folder / "att_splits.mat"), str(folder / "res101.mat")


def version_1(manifest: Manifest) -> dict[str, Any]:
    """The content of manifest.json as the first version wrote it, shards and all."""
    content = json.loads(Path(manifest.url, "manifest.json").read_text())
    labels, names = load_labels(manifest), np.array(manifest.class_names)
    rows, end = [], 0
    for shard in manifest.shards:
        found = Counter(names[labels[end : end + shard.count]].tolist())
        rows.append({**asdict(shard), "class_counts": dict(sorted(found.items()))})
        end += shard.count
    del content["class_counts"], content["num_damaged"], content["shards_sha256"]
    return {**content, "version": 1, "shards": rows}


def rewrite_table(folder: Path, entries: list[ShardEntry]) -> Manifest:
    """The packed data set in `folder`, after its shards have become other ones."""
    content = json.loads((folder / "manifest.json").read_text())
    content["shards_sha256"] = write_table(folder, entries)
    (folder / "manifest.json").write_text(json.dumps(content))
    return load_manifest(str(folder))


def pack_tree(root: Path, out: Path, **changed: Any) -> Manifest:
    """Pack a flat tree into several small shards, with two unseen classes."""
    options: dict[str, Any] = {
        "source": f"folder:{root}",
        "out": str(out),
        "unseen_fraction": 0.34,
        "images_per_shard": 6,
        "num_patches": 4,
        "workers": 1,
    }
    return pack(PackConfig(**{**options, **changed}))
