"""The stage that trains under Ray Train."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from typing import Any

import numpy as np
import ray
import ray.exceptions
import ray.train
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from distributed.board import make_board
from distributed.bookkeeper import Bookkeeper, cause_of, one_line
from distributed.display import Display, Stage
from distributed.features import FeatureSpec
from distributed.job import TrainingJob
from distributed.leftovers import remove_leftovers
from distributed.metrics import read_metrics
from distributed.prepare import Prepared
from distributed.progress import TrainingProgress, plural
from distributed.ray_storage import ray_storage
from distributed.room import shortfall
from distributed.run_storage import absolute, join
from distributed.start_timeout import start_failures, start_timeout
from distributed.tracking import Tracking, tracking
from distributed.train_worker import train_worker
from vgse.config import ClusterConfig, RunConfig

_STARTING_S = 10.0  # without workers, after which the display says what they wait for


def training_job(
    config: RunConfig, prepared: Prepared, spec: FeatureSpec, folder: str | Path, run: str | Path
) -> TrainingJob:
    """What workers are told."""
    return TrainingJob(
        config=config,
        run=absolute(run),
        url=absolute(prepared.manifest.url),
        spec=spec,
        folder=str(folder),
        classes=prepared.trained.tolist(),
        num_classes=len(prepared.manifest.class_names),
        word_vectors=prepared.word_vectors[prepared.trained].astype(np.float32),
        num_features=prepared.num_features,
        precision=spec.precision,
        fingerprint=prepared.fingerprint,
        num_images=_images_of(prepared),
    )


def _images_of(prepared: Prepared) -> int:
    names = {prepared.manifest.class_names[label] for label in prepared.trained}
    shards = prepared.manifest.shards_of("train")
    return sum(n for shard in shards for name, n in shard.class_counts.items() if name in names)


def run_training(job: TrainingJob, gpu: bool, display: Display) -> str:
    """Train under Ray Train; returns the folder or URL of the last checkpoint.

    A run folder that holds checkpoints is resumed from the last committed one.
    """
    config, run = job.config, job.run
    parent, _, name = run.rpartition("/")
    storage_path, filesystem = ray_storage(parent)
    remove_leftovers(run)
    board = make_board()
    job = replace(job, board=board)
    resources = {"CPU": config.cluster.cpus_per_worker}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=_num_workers(config.cluster),  # type: ignore[arg-type]
            use_gpu=gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=config.cluster.resize_interval,  # type: ignore[call-arg]
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=config.training.checkpoints_kept),
            failure_config=FailureConfig(
                max_failures=config.cluster.max_failures,
                controller_failure_limit=start_failures(config.cluster),  # type: ignore[call-arg]
            ),
            callbacks=[Bookkeeper(run, board)],  # type: ignore[list-item]
        ),
    )
    epochs, clusters = config.training.epochs, config.model.num_clusters
    state = TrainingProgress(epochs, job.num_images, clusters, config.cluster.max_failures)
    with (
        display.stage("training", epochs) as stage,
        tracking(config, run, read_metrics(run), stage.say) as trackers,
    ):
        with _watching(board, state, stage, trackers, config.cluster, gpu):
            try:
                with start_timeout(config.cluster), _interruptible():
                    result = trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise ValueError(f"training stopped: {_cause(error)}") from error
            except ray.exceptions.RayError as error:  # of the controller, which has no second one
                raise ValueError(
                    f"training stopped: {one_line(error)}; "
                    "run the same command again to go on from the last checkpoint"
                ) from error
        remove_leftovers(run)
        if result.checkpoint is None:
            raise ValueError(f"{run}: training ended without a checkpoint; see Ray's log")
        last = result.metrics or {}
        group = state.group or config.cluster.num_workers
        stage.summary = (
            f"{epochs} epochs on {plural(group, ('GPU' if gpu else 'CPU') + ' worker')}, "
            f"loss {last.get('loss', float('nan')):.3f}, "
            f"{last.get('used_clusters', 0)}/{clusters} clusters in use"
        ) + (f", {plural(state.restarts, 'restart')}" if state.restarts else "")
    return join(run, result.checkpoint.path.rstrip("/").rpartition("/")[2])


def _num_workers(config: ClusterConfig) -> int | tuple[int, int]:
    """A fixed number, or the range of an elastic run."""
    if config.min_workers is None or config.min_workers == config.num_workers:
        return config.num_workers
    return config.min_workers, config.num_workers


def _cause(error: ray.train.TrainingFailedError) -> str:
    """What went wrong on a worker, or before there were any, in one line."""
    if isinstance(error, ray.train.WorkerGroupError):
        return cause_of(error.worker_failures.values())
    inner = getattr(error, "controller_failure", error)
    if isinstance(inner, WorkerGroupStartupTimeoutError):
        return (
            f"there was no room for {plural(inner.num_workers, 'worker')} within "
            "cluster.wait_for_workers; add nodes, or set cluster.min_workers to go on with fewer, "
            "then run the same command again"
        )
    return str(inner) if isinstance(inner, ValueError) else one_line(inner)


@contextmanager
def _interruptible() -> Iterator[None]:
    """^C as everywhere else: Ray's own handler ends the workers and then the program, as if all
    were well, and would stay in place after the training."""
    main = current_thread() is main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _watching(
    board: Any,
    state: TrainingProgress,
    stage: Stage,
    trackers: Tracking,
    config: ClusterConfig,
    gpu: bool,
) -> Iterator[None]:
    """Show what the board holds from a thread, which ends before the cluster can."""
    ended = Event()
    seen = [0, 0]  # rows and events
    asked, said = time.monotonic(), None

    def show() -> None:
        news = ray.get(board.read.remote(*seen), timeout=5)
        seen[0] += len(news.rows)
        seen[1] += len(news.events)
        for line in state.take(news, time.monotonic()):
            stage.say(line)
        for row in news.rows:
            trackers.add(row)
        stage.update(state.done, details=state.details())

    def watch() -> None:
        nonlocal asked, said
        while not ended.wait(0.5):
            try:
                show()
                if state.alive:
                    asked = time.monotonic()
                elif time.monotonic() - asked > _STARTING_S:
                    asked = time.monotonic()
                    lack = shortfall(config, gpu, taken=False)
                    if lack and lack != said:
                        stage.say(lack)
                    said = lack
            except Exception:
                continue  # the cluster is busy or on its way down; the run itself will tell

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(10)
        with suppress(Exception):
            show()
