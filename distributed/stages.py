"""The stages of a run that use the cluster: features, start, training, embedding."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from distributed.board import Board
from distributed.checkpoint import load_module
from distributed.display import Display, Stage
from distributed.embed import Embedded, Encoder, embed_units, merge
from distributed.features import (
    FeatureSpec,
    Unit,
    access_of,
    cache_folder,
    compute_unit,
    feature_spec,
    units_of,
)
from distributed.loop import TrainingJob, build_model, train_worker
from distributed.metrics import KeepMetrics
from distributed.prepare import Prepared
from distributed.start import fit_start, sample_patches, save_start
from shards.entries import SPLITS
from vgse.clusters import Centroids, hash_threshold
from vgse.config import ClusterConfig, RunConfig
from vgse.devices import resolve_precision

_KEEP = 2  # checkpoints
_UNITS_A_TASK = 4


def run_features(
    config: RunConfig, prepared: Prepared, gpu: bool, display: Display
) -> tuple[FeatureSpec, Path]:
    """Compute what the feature cache lacks; returns its spec and folder."""
    manifest = prepared.manifest
    device = "cuda" if gpu else "cpu"
    precision = resolve_precision(config.backbone.precision, device)
    spec = feature_spec(config.backbone, precision)
    if config.backbone.train != "none":
        # θ will move: only the sample that starts the clusters is worth computing.
        size = config.model.num_clusters * config.model.max_points_per_centroid
        images = manifest.num_images("train")
        below = hash_threshold(size, images * manifest.num_patches)
        spec = replace(spec, seed=config.seed, sample_below=below)
    folder = cache_folder(prepared.cache, manifest, spec)
    units = units_of(manifest, SPLITS)
    missing = [unit for unit in units if not (folder / unit.file).is_file()]
    total = sum(unit.stop - unit.start for unit in units)
    with display.stage("features", sum(u.stop - u.start for u in missing)) as stage:
        task = ray.remote(num_cpus=1, num_gpus=1 if gpu else 0, max_retries=3)(compute_unit)
        url, access = _absolute(manifest.url), access_of(config.data)
        calls = ((task, (url, unit, spec, str(folder), device, access)) for unit in missing)
        damaged: list[str] = []
        for count, broken in _results(calls, limit=64):
            damaged += broken
            stage.advance(count, f"images by {config.backbone.name}")
        if len(damaged) > config.data.max_damaged * total:
            raise ValueError(
                f"{manifest.url}: {len(damaged)} of {total} images are damaged, such as "
                f"{damaged[0]}; more than data.max_damaged={config.data.max_damaged} allows: "
                "run python -m shards check, then pack again"
            )
        state = "from the cache" if not missing else f"{precision} on {device}"
        skipped = f", {len(damaged)} damaged ones skipped" if damaged else ""
        stage.summary = f"{total:,} images, {config.backbone.name}, {state}{skipped}"
    return spec, folder


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).absolute())


def _results(calls: Iterator[tuple[Any, tuple[Any, ...]]], *, limit: int) -> Iterator[Any]:
    """Results of remote calls as they come, with at most `limit` of them in flight."""
    flying: list[Any] = []
    for function, arguments in calls:
        flying.append(function.remote(*arguments))
        if len(flying) >= limit:
            done, flying = ray.wait(flying)
            yield from ray.get(done)
    while flying:
        done, flying = ray.wait(flying)
        yield from ray.get(done)


def _start_task(
    folder: str,
    units: Sequence[Unit],
    labels: list[int],
    config: RunConfig,
    num_patches: int,
    below: int,
    run: str,
) -> tuple[Centroids, int, int]:
    sample = sample_patches(
        folder,
        units,
        labels,
        sample_size=config.model.num_clusters * config.model.max_points_per_centroid,
        seed=config.seed,
        num_patches=num_patches,
        below=below,
    )
    projection, centroids = fit_start(sample, config.model, config.seed)
    save_start(Path(run) / "init", projection, centroids)
    return centroids, len(sample.features), sample.population


def run_start(
    config: RunConfig,
    prepared: Prepared,
    spec: FeatureSpec,
    folder: Path,
    run: Path,
    gpu: bool,
    display: Display,
) -> None:
    """k-means into `<run>/init`, unless it is there."""
    if (run / "init" / "centroids.npy").is_file():
        display.line("clusters    init/centroids.npy is there already")
        return
    with display.stage("clusters") as stage:
        task = ray.remote(num_cpus=1, num_gpus=1 if gpu else 0, max_retries=3)(_start_task)
        units = units_of(prepared.manifest, ["train"])
        labels = prepared.trained.tolist()
        centroids, sampled, population = ray.get(
            task.remote(
                str(folder),
                units,
                labels,
                config,
                prepared.manifest.num_patches,
                spec.sample_below,
                str(run),
            )
        )
        stage.summary = (
            f"k-means of {sampled:,} of {population:,} patches into {config.model.num_clusters} "
            f"on {centroids.device}, mean distance {centroids.objective:.3f}"
        )


def training_job(
    config: RunConfig, prepared: Prepared, spec: FeatureSpec, folder: Path, run: Path
) -> TrainingJob:
    """What workers are told."""
    return TrainingJob(
        config=config,
        run=str(run),
        url=_absolute(prepared.manifest.url),
        spec=spec,
        folder=str(folder),
        classes=prepared.trained.tolist(),
        num_classes=len(prepared.manifest.class_names),
        word_vectors=prepared.word_vectors[prepared.trained].astype(np.float32),
        num_features=prepared.num_features,
        precision=spec.precision,
        fingerprint=prepared.fingerprint,
    )


def run_training(job: TrainingJob, gpu: bool, display: Display) -> Path:
    """Train under Ray Train; returns the folder of the last checkpoint.

    A run folder that holds checkpoints is resumed from the last committed one.
    """
    config, run = job.config, Path(job.run)
    board = Board.remote()  # type: ignore[attr-defined]
    job = replace(job, board=board)
    resources = {"CPU": config.cluster.cpus_per_worker}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=_num_workers(config.cluster),  # type: ignore[arg-type]
            use_gpu=gpu,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=str(run.parent),
            checkpoint_config=CheckpointConfig(num_to_keep=_KEEP),
            failure_config=FailureConfig(
                max_failures=config.cluster.max_failures,
                controller_failure_limit=3,  # type: ignore[call-arg]
            ),
            callbacks=[KeepMetrics(str(run))],  # type: ignore[list-item]
        ),
    )
    epochs = config.training.epochs
    with display.stage("training", epochs) as stage:
        ended = Event()
        watcher = Thread(target=_watch, args=(board, stage, ended), daemon=True)
        watcher.start()
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise ValueError(f"training stopped: {_cause(error)}") from error
        finally:
            ended.set()
            watcher.join(10)
        if result.checkpoint is None:
            raise ValueError(f"{run}: training ended without a checkpoint; see Ray's log")
        last = result.metrics or {}
        stage.summary = (
            f"{epochs} epochs on {config.cluster.num_workers} {'GPU' if gpu else 'CPU'} workers, "
            f"loss {last.get('loss', float('nan')):.3f}, "
            f"{last.get('used_clusters', 0)}/{config.model.num_clusters} clusters in use"
        )
    return Path(result.checkpoint.path)


def _num_workers(config: ClusterConfig) -> int | tuple[int, int]:
    """A fixed number, or the range of an elastic run."""
    if config.min_workers is None or config.min_workers == config.num_workers:
        return config.num_workers
    return config.min_workers, config.num_workers


def _embed_numbered(encoder: Encoder, units: Sequence[Unit], number: int) -> tuple[int, Embedded]:
    return number, embed_units(encoder, units)


def _cause(error: BaseException) -> str:
    """The last line of what went wrong on a worker."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line]
    return (named or lines or [type(error).__name__])[-1].strip()


def _watch(board: Any, stage: Stage, ended: Event) -> None:
    seen = 0
    while not ended.wait(0.5):
        try:
            progress, rows = ray.get(board.read.remote(seen), timeout=5)
        except Exception:
            continue  # the cluster is busy or on its way down; the run itself will tell
        seen += len(rows)
        for row in rows:
            note = f"loss {row['loss']:.3f}, {row['images_per_second']:,.0f} images/s"
            stage.update(row["epoch"], note)
        if progress and progress["epoch"] + progress["share"] > stage.done:
            stage.update(progress["epoch"] + progress["share"], stage.note)


def run_embedding(
    job: TrainingJob, checkpoint: Path, gpu: bool, display: Display, manifest_units: list[Unit]
) -> Embedded:
    """Embed every image once; returns the reduced sums and one row an image."""
    device = "cuda" if gpu else "cpu"
    model = build_model(job)
    frozen = model.backbone is None
    start = build_model(job).head if frozen else None
    load_module(checkpoint, "head", model.head)
    if model.backbone is not None:
        load_module(checkpoint, "backbone", model.backbone)
    encoder = Encoder(
        url=job.url,
        folder=job.folder,
        spec=job.spec,
        num_classes=job.num_classes,
        head=model.head.eval().to(device),
        start=None if start is None else start.eval().to(device),
        backbone=None if model.backbone is None else model.backbone.eval().to(device),
        device=device,
        access=access_of(job.config.data),
    )
    task = ray.remote(num_cpus=1, num_gpus=1 if gpu else 0, max_retries=3)(_embed_numbered)
    groups = [
        manifest_units[i : i + _UNITS_A_TASK] for i in range(0, len(manifest_units), _UNITS_A_TASK)
    ]
    parts: dict[int, Embedded] = {}
    with display.stage("embedding", sum(u.stop - u.start for u in manifest_units)) as stage:
        shared = ray.put(encoder)
        calls = ((task, (shared, group, number)) for number, group in enumerate(groups))
        for number, part in _results(calls, limit=32):
            parts[number] = part
            stage.advance(len(part.images.keys))
        result = merge([parts[number] for number in range(len(groups))])
        stage.summary = f"{len(result.images.keys):,} images, each once"
    return result
