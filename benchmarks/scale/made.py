"""What the probes are given: manifests, folders of images, caches and run folders of any size.

A probe runs these on the checkout before as well, so they import of it what it has.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

IMAGES, CLASSES, UNSEEN = 1000, 1000, 200
PATCHES, CLUSTERS, FEATURES, EMBEDDED = 9, 150, 1280, 256
WORKERS = 1000


def draw_labels(shards: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and labels [1000] of each shard: nine of ten are of train, the others of test_unseen."""
    random = np.random.default_rng(0)
    train = shards - shards // 10
    for number in range(shards):
        seen = number < train
        low, high = (0, CLASSES - UNSEEN) if seen else (CLASSES - UNSEEN, CLASSES)
        name = f"train-{number:06d}" if seen else f"test_unseen-{number - train:06d}"
        yield f"{name}.tar", random.integers(low, high, IMAGES)


def class_rows() -> list[dict[str, Any]]:
    """The classes of a made manifest."""
    val, seen = CLASSES - UNSEEN - CLASSES // 10, CLASSES - UNSEEN
    roles = ["train" if n < val else "val" if n < seen else "unseen" for n in range(CLASSES)]
    names = [f"class_{number:04d}_of_a_usual_length" for number in range(CLASSES)]
    return [
        {"name": n, "role": r, "words": n.split("_")} for n, r in zip(names, roles, strict=True)
    ]


def make_manifest(folder: Path, shards: int, version: int) -> None:
    """A manifest of either version with its files beside it, and tars of the right length."""
    from shards.manifest import ShardEntry, write_labels, write_table

    folder.mkdir(parents=True)
    names = [row["name"] for row in class_rows()]
    rows, all_labels = [], []
    totals: dict[str, Counter[int]] = {s: Counter() for s in ("train", "test_seen", "test_unseen")}
    for file, labels in draw_labels(shards):
        split = file.rpartition("-")[0]
        found, counts = np.unique(labels, return_counts=True)
        by_class = dict(zip(found.tolist(), counts.tolist(), strict=True))
        row: dict[str, Any] = {"file": file, "split": split, "count": IMAGES, "bytes": 60_000_000}
        row |= {"sha256": os.urandom(32).hex(), "offsets": list(range(0, 60_000_000, 3_750_000))}
        if version == 1:
            row["class_counts"] = {names[label]: n for label, n in by_class.items()}
        else:
            totals[split].update(by_class)
        rows.append(row)
        with open(folder / file, "wb") as tar:
            tar.truncate(row["bytes"])  # takes no space
        all_labels.append(labels.astype(np.uint16))
    content: dict[str, Any] = {
        "version": version,
        "classes": class_rows(),
        "patches": {"method": "grid", "num_patches": PATCHES, "params": {"overlap": 0.5}},
        "image": {"short_side": 384, "quality": 90, "largest": 384},
        "source": "made",
        "licence": "",
        "damaged": [],
        "labels_sha256": write_labels(folder, np.concatenate(all_labels), CLASSES),
    }
    if version == 1:
        content["shards"] = rows
    else:
        content["shards_sha256"] = write_table(folder, [ShardEntry(**row) for row in rows])
        content["class_counts"] = {
            split: {names[label]: n for label, n in sorted(of.items())}
            for split, of in totals.items()
        }
    (folder / "manifest.json").write_text(json.dumps(content))


def make_tree(folder: Path, images: int) -> None:
    """A folder a class, 100 images in each: links to one small picture."""
    from PIL import Image

    original = folder.parent / "original.jpg"
    if not original.exists():
        Image.new("RGB", (8, 8)).save(original)
    for number in range(images):
        path = folder / f"class_{number // 100:05d}" / f"{number:08d}.jpg"
        if not number % 100:
            path.parent.mkdir(parents=True)
        if not number % 10_000:  # a file has room for so many names only
            copy = folder.parent / f"{folder.name}-{number}.jpg"
            copy.write_bytes(original.read_bytes())
        os.link(copy, path)


def cache_units(count: int) -> list[Any]:
    """Units of 256 images."""
    from distributed.features.cache import Unit

    return [Unit("train-000000.tar", "train", 256 * n, 256 * (n + 1)) for n in range(count)]


def make_cache(folder: Path, units: int) -> None:
    """A feature cache of 16 features a patch."""
    import torch

    from distributed.features.cache import write_unit

    folder.mkdir()
    tensors = {
        "labels": torch.arange(256) % CLASSES,
        "rows": torch.arange(256),
        "images": torch.ones(256, 16, dtype=torch.float16),
        "patches": torch.ones(256, PATCHES, 16, dtype=torch.float16),
    }
    for unit in cache_units(units):
        keys = [f"{number:08d}-0123abcd" for number in range(unit.start, unit.stop)]
        names = {"keys": json.dumps(keys), "sources": json.dumps(keys)}
        with mock.patch("os.fsync"):
            write_unit(folder, unit, tensors, names)


def made_images(count: int) -> dict[str, Any]:
    """The columns of some embedded images."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, count)
    keys = [f"{number:08d}-0123abcd" for number in range(count)]
    features = np.ones((count, FEATURES), np.float16)
    features[:, 0] += np.arange(count) % 50
    return {
        "keys": keys,
        "sources": [f"class/{key}.jpg" for key in keys],
        "shards": ["train-000000.tar"] * count,
        "splits": ["train"] * count,
        "rows": np.arange(count),
        "labels": labels,
        "features": features,
        "assignments": np.full((count, CLUSTERS), 1 / CLUSTERS, np.float32),
        "strongest": np.zeros((count, PATCHES), np.int32),
        "scores": np.ones((count, PATCHES), np.float32),
        "start_assignments": np.full((count, CLUSTERS), 1 / CLUSTERS, np.float32),
    }


def made_embedded(units: Any) -> Any:
    """What embedding some units gives."""
    from distributed.embedding.embed import Embedded, EmbeddedImages  # it has both, then as now
    from vgse.embeddings import add_images, empty_sums

    count = sum(unit.stop - unit.start for unit in units)
    columns = made_images(count)
    assignments = np.full((count, PATCHES, CLUSTERS), 1 / CLUSTERS, np.float32)
    both = [empty_sums(CLASSES, CLUSTERS) for _ in range(2)]
    for sums in both:
        add_images(sums, assignments, columns["labels"])
    images = EmbeddedImages(**columns)
    names = Embedded.__dataclass_fields__
    return Embedded(
        {"train": both[0]}, {"train": both[1]}, [images] if "parts" in names else images
    )


def make_run(run: Path, images: int) -> None:
    """A run folder as embedding leaves it for the evaluation."""
    from distributed.embedding.embed import Embedded, EmbeddedImages, part_of
    from vgse.formats import ClassEmbeddings, write_npz
    from vgse.images import image_features as files

    run.mkdir()
    names = [row["name"] for row in class_rows()]
    table = np.random.default_rng(0).normal(size=(CLASSES, CLUSTERS)).astype(np.float32)
    seen = np.arange(CLASSES - UNSEEN)
    unseen, val = np.arange(CLASSES - UNSEEN, CLASSES), seen[-CLASSES // 10 :]
    classes = ClassEmbeddings(names, table, table, table, seen, unseen, val)
    write_npz(run / "class_embeddings.npz", classes)
    size = 4096 if images > 200_000 else images
    labels, split = [], []
    for number, start in enumerate(range(0, images, size)):
        count = min(size, images - start)
        columns = made_images(count)
        places = np.arange(start, start + count)
        columns["keys"] = [f"{place:08d}-{place:08x}" for place in places]
        columns["splits"] = [("test_unseen", "train", "test_seen")[place % 3] for place in places]
        of_seen, of_unseen = places // 3 % len(seen), len(seen) + places // 3 % UNSEEN
        columns["labels"] = np.where(places % 3 > 0, of_seen, of_unseen)
        labels.append(columns["labels"].astype(np.int32))
        split.append(np.array([files.SPLITS.index(name) for name in columns["splits"]], np.uint8))
        rows = EmbeddedImages(**columns)
        if size < images:
            part_of(Embedded({}, {}, [rows]), number, str(run))
        else:
            given = files.ImageFeatures(
                rows.features,
                columns["labels"],
                split[-1],
                rows.keys,
                rows.assignments.astype(np.float16),
                rows.sources,
            )
            files.write_image_features(run, given)
    if size < images:
        counts = np.zeros((3, CLASSES), np.int64)
        np.add.at(counts, (np.concatenate(split), np.concatenate(labels)), 1)
        both = np.concatenate(labels), np.concatenate(split)
        files.write_index(run, files.PartsIndex(len(labels), counts, *both))
