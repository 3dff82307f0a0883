"""The training loop, the same for a worker of a cluster and for a process by itself."""

import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distributed.features.cache import FeatureSpec
from distributed.features.kmeans_init import load_start
from distributed.train.checkpoint import load_checkpoint, save_checkpoint
from distributed.train.data import (
    Dataset,
    Position,
    StepBatch,
    epoch_batches,
    epoch_start,
    open_dataset,
    plan_of,
    restore_position,
)
from distributed.train.metrics import EpochSums
from distributed.train.prefetch import prefetch
from shards.roles import Roles
from vgse.config import RunConfig
from vgse.files import disk_errors_in_one_line
from vgse.images.backbones import build_backbone
from vgse.images.devices import memory_errors_in_one_line
from vgse.training.losses import world_size
from vgse.training.model import ClusterHead, TrainingModel
from vgse.training.optimizer import make_optimizer, match_layout
from vgse.training.step import run_step

_WARM_UP = 0.05

Report = Callable[[dict[str, Any], Path | None], None]
"""Takes an epoch's metrics (or, marked "partial", those of a checkpoint within one) and, on rank 0
where one is due, the folder of a checkpoint, which is the callee's to move or delete."""


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker needs; travels from the driver by Ray."""

    config: RunConfig
    run: str  # run folder
    url: str  # shards
    spec: FeatureSpec
    folder: str  # feature cache
    classes: list[int]  # classes trained on, indices into class_names; S of them
    num_classes: int  # C
    targets: np.ndarray  # float32 [S, D_w] of the semantic loss
    num_features: int
    fingerprint: str  # of configuration and data
    num_images: int = 0  # of an epoch
    roles: Roles | None = None  # of classes, where they are not the shards' own
    progress: Any = None  # actor of distributed.train.progress.TrainingProgress


def learning_rate(progress: float) -> float:
    """Factor in 0..1 of the peak rate after a share `progress` of the training: linear warm-up
    over the first 5%, then half a cosine to zero."""
    if progress < _WARM_UP:
        return (progress + 1e-3) / (_WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - _WARM_UP) / (1 - _WARM_UP))))


def build_model(job: TrainingJob) -> TrainingModel:
    """Backbone (only when it learns), head started from k-means, and losses."""
    config = job.config
    torch.manual_seed(config.seed)
    backbone = None
    if config.backbone.train != "none":
        backbone = build_backbone(job.spec.name, job.spec.weights)
        backbone.learn(config.backbone.train)
        if config.backbone.compile:
            backbone.compile_blocks()
    head = ClusterHead(config.model, job.num_features, len(job.classes), job.targets.shape[1])
    projection, centroids = load_start(f"{job.run}/init")
    from_kmeans = config.model.init == "kmeans"
    head.start(projection, torch.from_numpy(centroids) if from_kmeans else None)
    return TrainingModel(backbone, head, torch.from_numpy(job.targets), config.loss)


def train_alone(
    job: TrainingJob,
    *,
    checkpoint: Path | None = None,
    on_epoch: Report | None = None,
    device: str = "cpu",
) -> TrainingModel:
    """Train in this process alone, without Ray, as a run with `cluster.num_workers=1` does; the run
    folder must hold `init/`. A checkpoint's folder lives until `on_epoch` returns."""

    def report(row: dict[str, Any], folder: Path | None) -> None:
        try:
            if on_epoch is not None and not row.get("partial"):
                on_epoch(row, folder)
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    return train_epochs(job, torch.device(device), 0, checkpoint, report, lambda model: model)


def train_epochs(
    job: TrainingJob,
    device: torch.device,
    rank: int,
    checkpoint: Path | None,
    report: Report,
    wrap: Callable[[TrainingModel], nn.Module],
) -> TrainingModel:
    """Train from a checkpoint's folder, or from k-means, to the last epoch. Every rank calls
    `report` at epochs' ends and at checkpoints; `wrap` puts the model of several workers in DDP."""
    model = build_model(job).to(device)
    optimizer = make_optimizer(model, job.config.training)
    dataset = open_dataset(job, device)
    seed, config = job.config.seed, job.config.training
    sums = EpochSums(len(job.classes), job.config.model.num_clusters, device)
    position = epoch_start(dataset, 0, 0, seed, world_size())
    if checkpoint is not None:
        state, sums.base = load_checkpoint(checkpoint, model, optimizer, job.fingerprint)
        match_layout(optimizer)
        position = restore_position(state, dataset, world_size())
    wrapped = wrap(model) if world_size() > 1 else model
    worker = Worker(job, model, wrapped, optimizer, dataset, device, rank, report)
    while position.cursor.epoch < config.epochs:
        seed_step(seed, position, rank)
        with memory_errors_in_one_line(_remedy(job)):
            worker.finish_epoch(position, sums)
        epoch, step = position.cursor.epoch + 1, worker.step
        rate = optimizer.param_groups[0]["lr"]
        row = {"epoch": epoch, "step": step, **sums.row(job.config.loss), "learning_rate": rate}
        position = epoch_start(dataset, epoch, step, seed, world_size())
        sums = EpochSums(len(job.classes), job.config.model.num_clusters, device)
        due = epoch % config.checkpoint_epochs == 0 or epoch == config.epochs
        worker.save_and_report(row, position if due else None, None)
    return model


def _remedy(job: TrainingJob) -> str:
    """What makes a step smaller."""
    batch, accumulate = job.config.training.batch_size, job.config.training.accumulate
    if job.config.backbone.train == "none":
        return f"lower training.batch_size (now {batch}) or loss.queue_size, or add workers"
    return f"raise training.accumulate (now {accumulate}) or lower training.batch_size ({batch})"


def seed_step(seed: int, position: Position, rank: int) -> None:
    """Draw random numbers anew, so that they need no place in a checkpoint."""
    torch.manual_seed(hash((seed, position.cursor.epoch, position.plan_step, rank)) % 2**63)


@dataclass
class Worker:
    """What a training worker holds between steps."""

    job: TrainingJob
    model: TrainingModel
    wrapped: nn.Module  # the model, under DDP where there are several workers
    optimizer: torch.optim.Optimizer
    dataset: Dataset
    device: torch.device
    rank: int
    report: Report
    step: int = 0

    def finish_epoch(self, position: Position, sums: EpochSums) -> None:
        """Do what is left of an epoch, with a checkpoint every `checkpoint_steps` steps."""
        plan = plan_of(position, self.dataset)
        # Loader workers take turns: a plan can go on only where a round of them ended.
        every = -(-self.job.config.training.checkpoint_steps // plan.readers) * plan.readers
        self.step = position.step
        patch_size, device = self.job.config.backbone.patch_size, self.device
        batches = epoch_batches(
            self.dataset, position.cursor, plan, self.rank, patch_size=patch_size, device=device
        )
        ahead = prefetch(batches, device)
        self.model.train()
        posted = entered = asked = time.monotonic()
        waited = 0.0
        for plan_step in range(plan.first_step, plan.steps):
            batch = next(ahead)
            waited += time.monotonic() - asked
            self._step(batch, position.cursor.epoch, sums)
            done = plan_step + 1
            if every and done % every == 0 and done < plan.steps:
                sums.add_time(waited, time.monotonic() - entered)
                sums.base = sums.total()
                sums.values.zero_()
                here = replace(position, plan_step=done, step=self.step)
                row = {"epoch": position.cursor.epoch, "step": self.step, "partial": True}
                self.save_and_report(row, here, sums.base)
                seed_step(self.job.config.seed, here, self.rank)
                entered, waited = time.monotonic(), 0.0
            asked = time.monotonic()
            if self.rank == 0 and self.job.progress and asked - posted > 0.5:
                self.job.progress.share_done.remote(position.cursor.epoch, batch.done_before)
                posted = asked
        sums.add_time(waited, time.monotonic() - entered)

    def _step(self, batch: StepBatch, epoch: int, sums: EpochSums) -> None:
        progress = (epoch + batch.done_before) / self.job.config.training.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(progress)
        # Under DDP gradients are views of what workers exchange, and stay in place.
        self.optimizer.zero_grad(set_to_none=self.wrapped is self.model)
        output = run_step(
            self.model,
            self.wrapped,
            batch,
            micro_batches=self.job.config.training.accumulate,
            precision=self.job.spec.precision,
        )
        self.optimizer.step()
        self.step += 1
        sums.add(output, batch)

    def save_and_report(
        self, row: dict[str, Any], position: Position | None, sums: Tensor | None
    ) -> None:
        """Report a row, with a checkpoint of `position` from rank 0."""
        folder = None
        if self.rank == 0 and position is not None:
            folder = Path(tempfile.mkdtemp(prefix="vgse-checkpoint-"))
            state = position.to_dict(), sums, self.job.fingerprint
            with disk_errors_in_one_line(folder):
                save_checkpoint(folder, self.model, self.optimizer, *state)
        self.report(row, folder)
