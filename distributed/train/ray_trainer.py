"""The stage that trains under Ray Train."""

import inspect
import logging
import signal
import threading
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any

import numpy as np
import ray
import ray.exceptions
import ray.train
import ray.train.torch
from ray.train import CheckpointConfig, CheckpointConsistencyMode, FailureConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distributed.cluster import describe_failure, environment, is_death, lost_partner, shortfall
from distributed.display import Display, Stage, plural
from distributed.features.cache import FeatureSpec
from distributed.logs import worker_log
from distributed.setup import Prepared
from distributed.storage import absolute
from distributed.train.callbacks import ReportCallback, cause_of
from distributed.train.checkpoint import epoch_of, newest_sound, remove_leftovers
from distributed.train.filesystem import ray_storage
from distributed.train.loggers import Tracking, tracking
from distributed.train.metrics import Diverged, read_metrics
from distributed.train.progress import TrainingProgress, start_progress
from distributed.train.trainer import TrainingJob, train_epochs
from shards.objects import join_url
from vgse.config import ClusterConfig, RunConfig
from vgse.errors import UserError
from vgse.training.model import TrainingModel

logger = logging.getLogger(__name__)


def ddp_options() -> dict[str, Any]:
    """Keyword arguments of DistributedDataParallel: gradients live in the buckets that are
    exchanged, so nothing is copied; buffers never change, so they stay where they are."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    # Its name up to torch 2.14, deprecated in 2.15.
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {"gradient_as_bucket_view": True, name: False}


_START_ATTEMPTS = 4
# Workers that hang, rather than die, hold all others up for so long, in place of half an hour. What
# they may wait for in earnest, a store that is away or blocks that are compiled, takes minutes.
COLLECTIVES = TorchConfig(timeout_s=600)


def start_failures(config: ClusterConfig) -> int:
    """Failed starts, over the whole run, after which a training gives up; -1 never."""
    if not _elastic(config):
        return _START_ATTEMPTS - 1
    # A group of the old size may fail once for each loss, until Ray notices that a node is gone.
    return -1 if config.max_failures < 0 else config.max_failures + _START_ATTEMPTS


def controller_settings(config: ClusterConfig) -> AbstractContextManager[None]:
    """What the controller of a training that is started inside goes by, unless the user says so.

    A group waits for its workers: Ray's minute is too short for a machine to be replaced, and too
    long for an elastic run. Each poll asks all workers and takes one report: two seconds would rule
    short epochs, and a fifth of one keep the controller of a thousand workers busy.
    """
    start = 20.0 if _elastic(config) else config.wait_for_workers / _START_ATTEMPTS
    poll = max(0.2, 0.004 * config.num_workers)
    return environment(
        {
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{start:g}",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": f"{poll:g}",
        }
    )


def _elastic(config: ClusterConfig) -> bool:
    return config.min_workers not in (None, config.num_workers)


def train_worker(arguments: dict[str, TrainingJob]) -> None:
    """Train from the newest sound checkpoint, or from k-means, to the last epoch."""
    job = arguments["job"]
    logging.getLogger("ray").setLevel(logging.ERROR)
    context, entered = ray.train.get_context(), time.time()
    rank, epoch = context.get_world_rank(), 1

    def report(row: dict[str, Any], folder: Path | None) -> None:
        """A barrier over all ranks; the upload goes on while training does."""
        nonlocal epoch
        epoch = row["epoch"] + 1
        ray.train.report(
            {**row, "entered": entered},
            checkpoint=ray.train.Checkpoint.from_directory(folder) if folder else None,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )

    with ExitStack() as stack:
        stack.enter_context(worker_log(job.progress.say.remote, rank))
        folder = None
        if checkpoint := _checkpoint_to_resume(job, rank):
            folder = Path(stack.enter_context(checkpoint.as_directory()))
            epoch = epoch_of(folder)
        if rank == 0:
            job.progress.group_started.remote(context.get_world_size(), epoch)
        device = ray.train.torch.get_device()
        logger.info("training from %s on %s", checkpoint.path if checkpoint else "k-means", device)
        try:
            train_epochs(job, device, rank, folder, report, parallel_model)
        except Diverged as error:
            raise Diverged(f"epoch {epoch}: {error}") from None


def _checkpoint_to_resume(job: TrainingJob, rank: int) -> ray.train.Checkpoint | None:
    """The newest committed checkpoint whose files are whole, which rank 0 finds for all."""
    latest = ray.train.get_checkpoint()
    if latest is None:
        return None
    name = None
    if rank == 0:
        committed = ray.train.get_all_reported_checkpoints(
            consistency_mode=CheckpointConsistencyMode.COMMITTED
        )
        names = [Path(reported.checkpoint.path).name for reported in committed]
        name, lines = newest_sound(job.run, names)
        for line in lines:
            job.progress.say.remote(line)
    if (name := broadcast_from_rank_zero(name)) is None:
        return None
    return ray.train.Checkpoint(join_url(str(Path(latest.path).parent), name), latest.filesystem)


def parallel_model(model: TrainingModel) -> nn.Module:
    """The model under DDP."""
    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs=ddp_options())


def training_job(
    config: RunConfig, prepared: Prepared, spec: FeatureSpec, folder: str | Path, run: str | Path
) -> TrainingJob:
    """What workers get."""
    manifest = prepared.manifest
    names = [manifest.class_names[label] for label in prepared.trained]
    return TrainingJob(
        config=config,
        run=absolute(run),
        url=absolute(manifest.url),
        spec=spec,
        folder=str(folder),
        classes=prepared.trained.tolist(),
        num_classes=len(manifest.class_names),
        targets=prepared.targets.astype(np.float32),
        num_features=prepared.num_features,
        fingerprint=prepared.fingerprint,
        num_images=sum(manifest.class_counts["train"].get(name, 0) for name in names),
        roles=prepared.roles,
    )


def run_training(job: TrainingJob, gpu: bool, display: Display) -> str:
    """Train under Ray Train, from the newest sound checkpoint of the run folder if it has one;
    returns the folder or URL of the last."""
    config, run, cluster = job.config, job.run, job.config.cluster
    epochs, clusters = config.training.epochs, config.model.num_clusters
    parent, _, name = run.rpartition("/")
    storage_path, filesystem = ray_storage(parent)
    remove_leftovers(run)
    progress = start_progress(epochs, job.num_images, clusters, cluster.max_failures)
    num_workers = (cluster.min_workers, cluster.num_workers)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": replace(job, progress=progress)},
        torch_config=COLLECTIVES,
        scaling_config=ScalingConfig(
            num_workers=num_workers if _elastic(cluster) else cluster.num_workers,  # type: ignore[arg-type]
            use_gpu=gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker},
            elastic_resize_monitor_interval_s=cluster.resize_interval,  # type: ignore[call-arg]
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=config.training.checkpoints_kept),
            failure_config=FailureConfig(
                max_failures=cluster.max_failures,
                controller_failure_limit=start_failures(cluster),  # type: ignore[call-arg]
            ),
            callbacks=[ReportCallback(run, progress)],  # type: ignore[list-item]
        ),
    )
    with (
        display.stage("training", epochs) as stage,
        tracking(config, run, read_metrics(run), stage.say) as trackers,
    ):
        watcher = _Watcher(progress, stage, trackers, cluster, gpu)
        watcher.start()
        try:
            with controller_settings(cluster):
                result = _fit(trainer)
        finally:
            watcher.end()
        remove_leftovers(run)
        if result.checkpoint is None:
            raise UserError(f"{run}: training ended without a checkpoint; see Ray's log")
        last, state = result.metrics or {}, watcher.last
        group = state.group if state else cluster.num_workers
        stage.summary = (
            f"{epochs} epochs on {plural(group, ('GPU' if gpu else 'CPU') + ' worker')}, "
            f"loss {last.get('loss', float('nan')):.3f}, "
            f"{last.get('used_clusters', 0)}/{clusters} clusters in use"
        ) + (f", {plural(state.restarts, 'restart')}" if state and state.restarts else "")
    return join_url(run, result.checkpoint.path.rstrip("/").rpartition("/")[2])


def _fit(trainer: TorchTrainer) -> ray.train.Result:
    """`trainer.fit()`, where what a user can mend is a UserError; a bug keeps its traceback."""
    again = "run the same command again to go on from the last checkpoint"
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    except SystemExit:  # ^C: Ray's own handler ends the program as if all were well
        raise KeyboardInterrupt from None
    except ray.train.WorkerGroupError as error:
        failures = error.worker_failures.values()
        if not (any(map(is_death, failures)) or all(map(lost_partner, failures))):
            raise
        raise UserError(f"training stopped: {cause_of(failures)}; {again}") from error
    except ray.train.TrainingFailedError as error:
        cause: Any = getattr(error, "controller_failure", error)
        if isinstance(cause, UserError):
            raise UserError(f"training stopped: {cause}") from error
        # Ray Train does not export it.
        if type(cause).__name__ != "WorkerGroupStartupTimeoutError":
            raise
        raise UserError(
            f"training stopped: there was no room for {plural(cause.num_workers, 'worker')} within "
            "cluster.wait_for_workers; add nodes, or set cluster.min_workers to go on with fewer, "
            "then run the same command again"
        ) from error
    except ray.exceptions.RayError as error:  # of the controller, which has no second one
        raise UserError(f"training stopped: {describe_failure(error)}; {again}") from error
    finally:
        if current_thread() is main_thread():
            signal.signal(signal.SIGINT, interrupt)


class _Watcher(Thread):
    """Shows how a training goes; it ends before the cluster can."""

    def __init__(
        self, progress: Any, stage: Stage, trackers: Tracking, config: ClusterConfig, gpu: bool
    ) -> None:
        super().__init__(daemon=True)
        self._progress, self._stage, self._trackers = progress, stage, trackers
        self._config, self._gpu = config, gpu
        self.last: TrainingProgress | None = None
        self._seen = 0  # news
        self._ended = threading.Event()

    def run(self) -> None:
        asked, lack = time.monotonic(), None
        while not self._ended.wait(0.5):
            with suppress(Exception):  # the cluster is busy or ends; the run itself will tell
                self._show()
                if self.last is not None and self.last.alive:
                    asked = time.monotonic()
                elif time.monotonic() - asked > 10:  # seconds without workers
                    asked, before = time.monotonic(), lack
                    lack = shortfall(self._config, self._gpu, taken=False)
                    if lack and lack != before:
                        self._stage.say(lack)

    def end(self) -> None:
        """Stop, and show what came last."""
        self._ended.set()
        self.join(10)
        with suppress(Exception):
            self._show()

    def _show(self) -> None:
        self.last = state = ray.get(self._progress.update.remote(self._seen), timeout=5)
        self._seen += len(state.news)
        for item in state.news:
            if isinstance(item, str):
                self._stage.say(item)
            elif isinstance(item, logging.LogRecord):
                logging.getLogger(item.name).handle(item)  # as if it had been logged here
            else:
                self._trackers.add(item)
        self._stage.update(state.done, details=state.details())
