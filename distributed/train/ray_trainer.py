"""The stage that trains under Ray Train."""

import inspect
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any

import numpy as np
import ray
import ray.exceptions
import ray.train
import ray.train.torch
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distributed.cluster import shortfall
from distributed.display import Display, Stage
from distributed.features.cache import FeatureSpec
from distributed.setup import Prepared
from distributed.storage import absolute
from distributed.train.callbacks import (
    Bookkeeper,
    Event,
    TrainingProgress,
    cause_of,
    make_board,
    one_line,
    plural,
)
from distributed.train.checkpoint import remove_leftovers
from distributed.train.filesystem import ray_storage
from distributed.train.loggers import Tracking, tracking
from distributed.train.metrics import Diverged, read_metrics
from distributed.train.spec import TrainingJob
from distributed.train.trainer import train_epochs
from shards.objects import join_url
from vgse.config import ClusterConfig, RunConfig
from vgse.errors import UserError
from vgse.training.model import TrainingModel


def ddp_options() -> dict[str, Any]:
    """Keyword arguments of DistributedDataParallel.

    Gradients live in the buckets that are exchanged, so that nothing is copied; buckets travel
    while the rest of the backward pass runs. Buffers never change, so they stay where they are.
    `static_graph` would gain nothing: every parameter takes part in every step.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    # Its name up to torch 2.14, deprecated in 2.15.
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {"gradient_as_bucket_view": True, name: False}


_NAME = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_ATTEMPTS = 4
_ELASTIC_S = 20.0


def start_failures(config: ClusterConfig) -> int:
    """Failed starts after which a training gives up; -1 never.

    Ray counts them over the whole run. An elastic group of the old size may fail to start once
    for each loss, until Ray has noticed that a node is gone.
    """
    if _elastic(config):
        return -1 if config.max_failures < 0 else config.max_failures + _START_ATTEMPTS
    return _START_ATTEMPTS - 1


@contextmanager
def start_timeout(config: ClusterConfig) -> Iterator[None]:
    """Let a group that is started inside wait as the configuration says.

    Ray's own minute is too short for a machine to be replaced, and too long for an elastic run,
    which goes on with fewer workers after it. A value that the user has set stays.
    """
    if _NAME in os.environ:
        yield
        return
    seconds = _ELASTIC_S if _elastic(config) else config.wait_for_workers / _START_ATTEMPTS
    os.environ[_NAME] = f"{seconds:g}"
    try:
        yield
    finally:
        del os.environ[_NAME]


def _elastic(config: ClusterConfig) -> bool:
    return config.min_workers not in (None, config.num_workers)


def train_worker(arguments: dict[str, TrainingJob]) -> None:
    """Train from the last committed checkpoint, or from k-means, to the last epoch."""
    job = arguments["job"]
    logging.getLogger("ray").setLevel(logging.ERROR)
    context, entered = ray.train.get_context(), time.time()
    rank, epoch = context.get_world_rank(), 1

    def report(row: dict[str, Any], folder: Path | None) -> None:
        """A barrier over all ranks. The upload goes on while training does; Ray deletes the
        local folder afterwards."""
        nonlocal epoch
        epoch = row["epoch"] + 1
        ray.train.report(
            {**row, "entered": entered},
            checkpoint=ray.train.Checkpoint.from_directory(folder) if folder else None,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )

    with ExitStack() as open_things:
        checkpoint = ray.train.get_checkpoint()
        folder = None
        if checkpoint:
            folder = Path(open_things.enter_context(checkpoint.as_directory()))
            epoch = _epoch_of(folder)
        if rank == 0 and job.board is not None:
            job.board.event.remote(Event("started", context.get_world_size(), epoch))
        device = ray.train.torch.get_device()
        try:
            train_epochs(job, device, rank, folder, report, _parallel)
        except Diverged as error:
            raise Diverged(f"epoch {epoch}: {error}") from None


def _epoch_of(checkpoint: Path) -> int:
    """Number, from 1, of the epoch that a checkpoint goes on with."""
    state = json.loads((checkpoint / "state.json").read_text())
    return int(state["position"]["cursor"]["epoch"]) + 1


def _parallel(model: TrainingModel) -> nn.Module:
    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs=ddp_options())


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
                raise UserError(f"training stopped: {_cause(error)}") from error
            except ray.exceptions.RayError as error:  # of the controller, which has no second one
                raise UserError(
                    f"training stopped: {one_line(error)}; "
                    "run the same command again to go on from the last checkpoint"
                ) from error
        remove_leftovers(run)
        if result.checkpoint is None:
            raise UserError(f"{run}: training ended without a checkpoint; see Ray's log")
        last = result.metrics or {}
        group = state.group or config.cluster.num_workers
        stage.summary = (
            f"{epochs} epochs on {plural(group, ('GPU' if gpu else 'CPU') + ' worker')}, "
            f"loss {last.get('loss', float('nan')):.3f}, "
            f"{last.get('used_clusters', 0)}/{clusters} clusters in use"
        ) + (f", {plural(state.restarts, 'restart')}" if state.restarts else "")
    return join_url(run, result.checkpoint.path.rstrip("/").rpartition("/")[2])


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
    return str(inner) if isinstance(inner, UserError) else one_line(inner)


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
    ended = threading.Event()
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
