"""Each probe measures one thing in a process of its own, on this checkout or the one before:

python -P -m benchmarks.scale.probes NAME GIVEN
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from benchmarks.scale.made import (
    CLASSES,
    EMBEDDED,
    FEATURES,
    IMAGES,
    PATCHES,
    WORKERS,
    cache_units,
    made_embedded,
)

LATENCY_S = 0.0005  # of a file system over a network, for each call that asks it
Values = dict[str, float]


def manifest(folder: str) -> Values:
    """Bytes of the files that say what the shards are."""
    names = [name for name in ("manifest.json", "shards.npy") if Path(folder, name).exists()]
    return {"bytes": sum(Path(folder, name).stat().st_size for name in names)}


def start(folder: str) -> Values:
    """Seconds (CPU) and MB until a process of a run knows its data: one that computes features
    knows a unit's shard, one that trains all that it reads in an epoch among 1,000 workers."""
    from shards import sampler
    from shards.manifest import load_manifest

    values: Values = {}
    with memory_taken(values):
        began = time.process_time()
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
    return {**values, "features": loaded - began, "training": ended - began}


def loader(folder: str) -> Values:
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


def order(shards: int) -> Values:
    """Seconds for an epoch's order and the batch counts of 1,000 workers."""
    from shards import sampler

    began = time.process_time()
    order = sampler.epoch_order([IMAGES] * shards, seed=0, epoch=1)
    ordered = time.process_time()
    sampler.batch_counts(sampler.split_ranges([(0, order.total)], WORKERS, 0, 64 * WORKERS))
    return {"order": ordered - began, "counts": time.process_time() - ordered}


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


def files(folder: str) -> Values:
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


def check(folder: str) -> Values:
    """Seconds until the driver has its manifest and knows that all tars are there."""
    from shards.manifest import load_manifest

    with slow_files():
        began = time.perf_counter()
        load_manifest(folder)
        return {"seconds": time.perf_counter() - began}


def queue(workers: int) -> Values:
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
        mock.patch.object(neighbours, "world_size", return_value=workers),
    ):
        rows = torch.zeros(32 * PATCHES, EMBEDDED)
        images = torch.arange(32).repeat_interleave(PATCHES)
        neighbours.NeighbourQueue(4096).push(rows, images, torch.ones(len(images)))
    return {"mb": sum(gathered) / 1e6}


def submission(calls: int) -> Values:
    """Driver's ms for each of many calls to 1,000 actors of 5 threads, whose answers are there at
    once: actors are faked, references and waiting are Ray's own."""
    import ray

    from distributed.features import actors

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    method = SimpleNamespace(remote=lambda *given: ray.put(None))
    caller = SimpleNamespace(remote=lambda: SimpleNamespace(call=method, ready=method))
    fake = mock.Mock(wraps=ray, kill=lambda actor: None, exceptions=ray.exceptions)
    fake.remote = lambda kind: SimpleNamespace(options=lambda **how: caller)
    with mock.patch.object(actors, "ray", fake):
        began = time.perf_counter()
        given = ((number,) for number in range(calls))
        found = sum(1 for _ in actors.actor_results(print, given, WORKERS, cpus=1, threads=5))
        seconds = time.perf_counter() - began
    assert found == calls
    return {"seconds": seconds}


def flight(cores: int) -> Values:
    """The most calls that are under way at once in tasks, on a cluster of so many cores."""
    import ray

    from distributed.features import actors

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    submitted = most = 0

    def submit(*given: object) -> Any:
        nonlocal submitted
        submitted += 1
        return ray.put(None)

    fake = mock.Mock(wraps=ray, exceptions=ray.exceptions)
    fake.remote = lambda **how: lambda function: SimpleNamespace(remote=submit)
    fake.cluster_resources = lambda: {"CPU": cores}
    with mock.patch.object(actors, "ray", fake):
        calls = ((number,) for number in range(10 * cores))
        for taken, _ in enumerate(actors.task_results(print, calls)):
            most = max(most, submitted - taken)
    return {"calls": most}


def sample(folder: str) -> Values:
    """Seconds (CPU) in which k-means gets its sample from a cache: on one node before, and now what
    the driver does with the parts that tasks took while they computed the units."""
    from distributed.features import kmeans_init
    from vgse.config import RunConfig

    config, labels = RunConfig(), list(range(CLASSES))
    units = cache_units(len(os.listdir(folder)))
    if not hasattr(kmeans_init, "complete_sample"):
        began = time.process_time()
        kmeans_init.sample_patches(
            folder, units, labels, config, num_patches=PATCHES, below=2**64 - 1
        )
        return {"seconds": time.process_time() - began}
    from distributed.features import sample
    from shards.objects import ACCESS
    from vgse.clusters import hash_threshold

    sampling = sample.sampling_of(config, labels, PATCHES)
    below = hash_threshold(sampling.size, 256 * PATCHES * len(units))
    sampling = replace(sampling, below=below)
    groups = [units[start : start + 4] for start in range(0, len(units), 4)]
    parts = [sample.sample_of_units(folder, group, sampling, ACCESS) for group in groups]
    began = time.process_time()
    gathered = sample.PatchSample(sampling)
    for part in parts:
        gathered.add(*part)
    gathered.features()
    return {"seconds": time.process_time() - began}


def embedding(images: int) -> Values:
    """MB that the driver takes while parts arrive and are added up."""
    from distributed.embedding import embed
    from distributed.features.cache import Unit

    units = [
        Unit("train-000000.tar", "train", start, min(start + 256, images))
        for start in range(0, images, 256)
    ]
    values: Values = {}
    job = mock.MagicMock(num_classes=CLASSES, num_features=FEATURES, run="run")

    def results(function: object, calls: Any, *rest: object) -> Iterator[Any]:
        for _, group, number, *run in calls:
            embedded = made_embedded(group)
            if not run:
                yield number, embedded
                continue
            with mock.patch.object(embed, "write_part"):
                yield embed.part_of(embedded, number, run[0])

    model = mock.MagicMock(backbone=None)
    display = mock.MagicMock()
    display.stage().__enter__().done = 0.0
    with (
        mock.patch.object(embed, "remote_results", results),
        mock.patch.object(embed, "build_model", return_value=model),
        mock.patch.object(embed, "load_module"),
        mock.patch.object(embed.ray, "put"),
        memory_taken(values),
    ):
        embed.run_embedding(job, "checkpoint", False, display, units)
    return values


def evaluation(run: str) -> Values:
    """MB that the evaluation takes until it has its images' features, before any model."""
    from vgse import run_folder
    from vgse.config import EvaluationConfig, RelationConfig

    class Reached(Exception):
        pass

    def stop(data: Any) -> Any:
        raise Reached(str(data.features.shape))

    values: Values = {}
    with (
        suppress(Reached),
        memory_taken(values),
        mock.patch.object(run_folder, "with_validation", stop),
    ):
        run_folder.evaluate_run(Path(run), EvaluationConfig(), RelationConfig(), 0)
    return values


def maps(units: int) -> Values:
    """The most files of the feature cache that a trainer maps at once in an epoch of its own."""
    import weakref

    import torch

    from distributed.train import data
    from shards import sampler

    mapped, most = 0, 0

    class Unit:
        def __init__(self) -> None:
            nonlocal mapped, most
            mapped += 1
            most = max(most, mapped)
            weakref.finalize(self, unmap)
            self.rows = torch.arange(1024)
            self.patches = torch.zeros(1024, 1, 1)
            self.labels = torch.zeros(1024, dtype=torch.int64)

    def unmap() -> None:
        nonlocal mapped
        mapped -= 1

    count = units // 4
    order = sampler.epoch_order([1024] * count, seed=0, epoch=0)
    plan = sampler.split_ranges([(0, order.total)], 1, 0, 4096)
    shards = [SimpleNamespace(file="train-000000.tar", count=1024)] * count
    selection: Any = SimpleNamespace(
        shards=shards, indices=[None] * count, stored=lambda shard, indices: indices
    )
    dataset: Any = SimpleNamespace(
        folder="", selection=selection, label_of=torch.zeros(1, dtype=torch.int64), access=None
    )
    with mock.patch.object(data, "read_unit", side_effect=lambda *given: Unit()):
        for _ in data._feature_parts(dataset, order, plan, 0):
            pass
    return {"maps": most}


def memory_mb(name: str) -> float:
    """VmRSS, what this process holds now, or VmHWM, the most that it has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


@contextmanager
def memory_taken(values: Values) -> Iterator[None]:
    """Sets `mb` to the most that is held at once inside, above what there was before."""
    Path("/proc/self/clear_refs").write_text("5")  # the most is what there is now
    before = memory_mb("VmRSS")
    try:
        yield
    finally:
        values["mb"] = memory_mb("VmHWM") - before


PROBES: dict[str, Callable[[Any], Values]] = {
    probe.__name__: probe
    for probe in (
        *(manifest, start, loader, order, check, files, submission, maps, sample),
        *(embedding, evaluation, queue, flight),
    )
}

if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](json.loads(sys.argv[2]))))
