"""What grows with the data set and the cluster, and how fast: before and after.

    python -m benchmarks.scale [--rows manifest,start,...]

Manifests of 1k, 10k and 100k shards are made (1,000 images each, 1,000 classes), and processes are
faked; no picture is read and no GPU is used. Each figure comes from a process of its own, which
runs the same probe on this checkout and on the one before (commit 06e9f54, taken from git into a
temporary folder). It writes `benchmarks/results/scale.json` and, from that, `scale.md`; with
--rows the other rows stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEFORE = "06e9f54"
IMAGES, CLASSES, UNSEEN = 1000, 1000, 200
PATCHES, CLUSTERS, FEATURES, EMBEDDED = 9, 150, 1280, 256
WORKERS = 1000
SHARDS = (1_000, 10_000, 100_000)
LATENCY_S = 0.0005  # of a file system over a network, for each call that asks it


# The manifest


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
    return [{"name": n, "role": r, "words": n.split("_")} for n, r in zip(names, roles, strict=True)]


def make_manifest(folder: Path, shards: int, version: int) -> int:
    """A manifest of either version with its files beside it, but no tars; returns bytes."""
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
        all_labels.append(labels.astype(np.uint16))
    content: dict[str, Any] = {
        "version": version,
        "classes": class_rows(),
        "patches": {"method": "grid", "num_patches": PATCHES, "params": {"overlap": 0.5}},
        "image": {"short_side": 384, "quality": 90, "largest": 384},
        **{"source": "made", "licence": "", "damaged": [], "stride": 64, "plan": ""},
        "labels_sha256": write_labels(folder, np.concatenate(all_labels), CLASSES),  # type: ignore[arg-type]
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
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != "labels.npy")


def probe_start(folder: str) -> dict[str, float]:
    """Seconds (CPU) and MB until a process of a run knows its data: one that computes features
    knows a unit's shard, one that trains all that it reads in an epoch among 1,000 workers."""
    from shards import sampler
    from shards.manifest import load_manifest

    before, began = peak_mb(), time.process_time()
    manifest = load_manifest(folder, check_files=False)
    if hasattr(manifest.shards, "find"):
        manifest.shards.find("train-000007.tar")
    else:
        next(shard for shard in manifest.shards if shard.file == "train-000007.tar")
    loaded = time.process_time()
    classes = sorted(set(manifest.seen) - set(manifest.val))
    selection = sampler.select(manifest, "train", classes)
    cursor = sampler.start_of(manifest, selection, seed=0)
    order = sampler.order_of(cursor, selection)
    plan = sampler.split_ranges(cursor.remaining, WORKERS, 0, 64 * WORKERS)
    for start, stop in sampler.reader_ranges(plan, 1, 0):
        next(sampler.pieces(order, start, stop))
    ended = time.process_time()
    return {"features": loaded - began, "training": ended - began, "mb": peak_mb() - before}


def probe_loader(folder: str) -> dict[str, float]:
    """Bytes that a loader process is given."""
    from multiprocessing.reduction import ForkingPickler

    import torch.multiprocessing  # noqa: F401  teaches the pickler tensors

    from shards import sampler
    from shards.loader import Batches, Cut
    from shards.manifest import load_manifest

    manifest = load_manifest(folder, check_files=False)
    classes = sorted(set(manifest.seen) - set(manifest.val))
    selection = sampler.select(manifest, "train", classes)
    cursor = sampler.start_of(manifest, selection, seed=0)
    plan = sampler.split_ranges(cursor.remaining, WORKERS, 8, 64 * WORKERS)
    order = sampler.order_of(cursor, selection)
    batches = Batches(manifest, selection, order, plan, 0, Cut("images", 384))
    return {"bytes": len(ForkingPickler.dumps(batches))}


def probe_order(shards: int) -> dict[str, float]:
    """Seconds for an epoch's order and the batch counts of 1,000 workers."""
    from shards import sampler

    began = time.process_time()
    order = sampler.epoch_order([IMAGES] * shards, seed=0, epoch=1)
    ordered = time.process_time()
    sampler.batch_counts(sampler.split_ranges([(0, order.total)], WORKERS, 0, 64 * WORKERS))
    return {"order": ordered - began, "counts": time.process_time() - ordered}


# Packing


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


@contextmanager
def slow_files() -> Iterator[Counter[str]]:
    """Each listing of a folder and each look at a file takes as long as over a network; entries of
    a listing know their kind, but not their size. Counts calls."""
    calls: Counter[str] = Counter()
    stat, scandir = os.stat, os.scandir

    def slow_stat(*given: Any, **options: Any) -> os.stat_result:
        calls["stat"] += 1
        time.sleep(LATENCY_S)
        return stat(*given, **options)

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.entry, self.name, self.path = entry, entry.name, entry.path
            self.is_dir, self.is_file = entry.is_dir, entry.is_file
            self.is_symlink = entry.is_symlink

        def __fspath__(self) -> str:
            return self.path

        def stat(self, **options: Any) -> os.stat_result:
            calls["stat"] += 1
            time.sleep(LATENCY_S)
            return self.entry.stat(**options)

    class Listing:
        def __init__(self, path: Any) -> None:
            calls["listing"] += 1
            time.sleep(LATENCY_S)
            self.entries = scandir(path)

        def __enter__(self) -> Listing:
            return self

        def __exit__(self, *error: object) -> None:
            self.entries.close()

        def __iter__(self) -> Listing:
            return self

        def __next__(self) -> Entry:
            return Entry(next(self.entries))

        def close(self) -> None:
            self.entries.close()

    with mock.patch("os.stat", slow_stat), mock.patch("os.scandir", Listing):
        yield calls


def probe_files(folder: str) -> dict[str, float]:
    """Seconds until packing knows its images, and its calls to the file system for each."""
    from shards.config import PackConfig
    from shards.datasets.dataset import read_source
    from shards.pack.pack import plan_shards

    config = PackConfig(source=f"folder:{folder}", out="out", unseen_fraction=0.2)
    with slow_files() as calls:
        began = time.perf_counter()
        data = read_source(config)
        plan_shards(data, config)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "calls": calls.total() / len(data.images)}


# The neighbour queue


def probe_queue(workers: int) -> dict[str, float]:
    """MB that a step's collectives bring to each worker: 32 images of 9 patches of each."""
    import torch
    import torch.distributed as dist

    from vgse.training import neighbours

    gathered: list[int] = []

    def gather(into: Any, values: Any, async_op: bool) -> Any:
        parts = into if isinstance(into, list) else [into]
        gathered.extend(part.numel() * part.element_size() for part in parts)
        return SimpleNamespace(wait=lambda: None)

    name = "_all_gather_single" if hasattr(neighbours, "_all_gather_single") else None
    target: Any = neighbours if name else dist
    with (
        mock.patch.object(target, name or "all_gather", gather),
        mock.patch.object(neighbours, "world_size", lambda: workers),
    ):
        rows = torch.zeros(32 * PATCHES, EMBEDDED)
        images = torch.arange(32).repeat_interleave(PATCHES)
        neighbours.NeighbourQueue(4096).push(rows, images, torch.ones(len(images)))
    return {"mb": sum(gathered) / 1e6}


def peak_mb() -> float:
    """The largest memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
