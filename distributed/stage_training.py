"""The stage that trains under Ray Train."""

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
from distributed.display import Display, Stage
from distributed.features import FeatureSpec
from distributed.job import TrainingJob
from distributed.metrics import KeepMetrics
from distributed.prepare import Prepared
from distributed.stage_features import absolute
from distributed.train_worker import train_worker
from vgse.config import ClusterConfig, RunConfig


def training_job(
    config: RunConfig, prepared: Prepared, spec: FeatureSpec, folder: Path, run: Path
) -> TrainingJob:
    """What workers are told."""
    return TrainingJob(
        config=config,
        run=str(run),
        url=absolute(prepared.manifest.url),
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
            checkpoint_config=CheckpointConfig(num_to_keep=config.training.checkpoints_kept),
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
