"""The training loop that every Ray Train worker runs."""

import logging
import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from distributed.batches import Dataset, StepBatch, epoch_batches, open_dataset
from distributed.checkpoint import load_checkpoint, save_checkpoint
from distributed.epoch_sums import EpochSums
from distributed.features import FeatureSpec
from distributed.position import Position, epoch_start, plan_of, restore_position
from distributed.start import load_start
from vgse.backbones import build_backbone
from vgse.config import RunConfig
from vgse.devices import autocast
from vgse.losses import world_size
from vgse.model import ClusterHead, TrainingModel

WARM_UP = 0.05
_POST_INTERVAL_S = 0.5


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
    word_vectors: np.ndarray  # float32 [S, D_w]
    num_features: int
    precision: str
    fingerprint: str  # of configuration and data
    board: Any = None  # actor handle of distributed.board.Board


def learning_rate(progress: float) -> float:
    """Factor in 0..1 of the peak rate after a share `progress` of the training: linear warm-up
    over the first 5%, then half a cosine to zero."""
    if progress < WARM_UP:
        return (progress + 1e-3) / (WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))


def build_model(job: TrainingJob) -> TrainingModel:
    """Backbone (only when it learns), head started from k-means, and losses."""
    config = job.config
    torch.manual_seed(config.seed)
    backbone = None
    if config.backbone.train != "none":
        backbone = build_backbone(config.backbone.name, config.backbone.weights)
        backbone.learn(config.backbone.train)
    head = ClusterHead(config.model, job.num_features, len(job.classes), job.word_vectors.shape[1])
    projection, centroids = load_start(Path(job.run) / "init")
    from_kmeans = config.model.init == "kmeans"
    head.start(projection, torch.from_numpy(centroids) if from_kmeans else None)
    return TrainingModel(backbone, head, torch.from_numpy(job.word_vectors), config.loss)


def build_optimizer(model: TrainingModel, config: RunConfig) -> torch.optim.AdamW:
    """AdamW with a peak rate each for prototypes and projection, for Q and S, and for θ."""
    rates, head = config.training, model.head
    regressors = [*head.classifier.parameters(), *head.regressor.parameters()]
    known = {id(parameter) for parameter in regressors}
    clustering = [p for p in head.parameters() if p.requires_grad and id(p) not in known]
    groups: list[dict[str, Any]] = [
        {"params": clustering, "peak": rates.learning_rate},
        {"params": regressors, "peak": rates.regressor_learning_rate},
    ]
    if model.backbone is not None:
        part = [p for p in model.backbone.parameters() if p.requires_grad]
        groups.append({"params": part, "peak": rates.backbone_learning_rate})
    return torch.optim.AdamW(groups, lr=rates.learning_rate, weight_decay=rates.weight_decay)


def train_worker(arguments: dict[str, TrainingJob]) -> None:
    """Train from the last checkpoint, or from k-means, to the last epoch."""
    job = arguments["job"]
    logging.getLogger("ray").setLevel(logging.ERROR)
    rank = ray.train.get_context().get_world_rank()
    device = ray.train.torch.get_device()
    model = build_model(job).to(device)
    optimizer = build_optimizer(model, job.config)
    dataset = open_dataset(job, device)
    seed, config = job.config.seed, job.config.training
    sums = EpochSums(len(job.classes), job.config.model.num_clusters, device)
    position = epoch_start(dataset, 0, 0, seed, world_size())
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state, sums.base = load_checkpoint(Path(folder), model, optimizer, job.fingerprint)
        position = restore_position(state, dataset, world_size())
    wrapped: nn.Module = model
    if world_size() > 1:
        wrapped = ray.train.torch.prepare_model(
            model,
            parallel_strategy_kwargs={"broadcast_buffers": False},  # they never change
        )
    worker = Worker(job, model, wrapped, optimizer, dataset, device, rank)
    while position.cursor.epoch < config.epochs:
        # Drawn anew from these, random numbers need no place in a checkpoint.
        place = (seed, position.cursor.epoch, position.plan_step, rank)
        torch.manual_seed(hash(place) % 2**63)
        worker.finish_epoch(position, sums)
        epoch, step = position.cursor.epoch + 1, worker.step
        rate = optimizer.param_groups[0]["lr"]
        row = {"epoch": epoch, "step": step, **sums.row(job.config.loss), "learning_rate": rate}
        if rank == 0 and job.board is not None:
            job.board.metrics.remote(row)
        position = epoch_start(dataset, epoch, step, seed, world_size())
        sums = EpochSums(len(job.classes), job.config.model.num_clusters, device)
        due = epoch % config.checkpoint_epochs == 0 or epoch == config.epochs
        worker.report(row, position if due else None, None)


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
    step: int = 0

    def finish_epoch(self, position: Position, sums: EpochSums) -> None:
        """Do what is left of an epoch, with a checkpoint every `checkpoint_steps` steps."""
        plan = plan_of(position, self.dataset)
        # Loader workers take turns: a plan can go on only where a round of them ended.
        every = -(-self.job.config.training.checkpoint_steps // plan.readers) * plan.readers
        self.step = position.step
        batches = epoch_batches(
            self.dataset,
            position.cursor,
            plan,
            self.rank,
            patch_size=self.job.config.backbone.patch_size,
            device=self.device,
        )
        self.model.train()
        posted = entered = asked = time.monotonic()
        waited = 0.0
        for plan_step in range(plan.first_step, plan.steps):
            batch = next(batches)
            waited += time.monotonic() - asked
            self._step(batch, position.cursor.epoch, sums)
            done = plan_step + 1
            if every and done % every == 0 and done < plan.steps:
                sums.add_time(waited, time.monotonic() - entered)
                here = replace(position, plan_step=done, step=self.step)
                self._checkpoint_within(here, sums)
                entered, waited = time.monotonic(), 0.0
            if self.rank == 0 and time.monotonic() - posted > _POST_INTERVAL_S:
                posted = time.monotonic()
                self._post(position.cursor.epoch, batch.done_before)
            asked = time.monotonic()
        sums.add_time(waited, time.monotonic() - entered)

    def _step(self, batch: StepBatch, epoch: int, sums: EpochSums) -> None:
        progress = (epoch + batch.done_before) / self.job.config.training.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(progress)
        precision = self.job.precision if self.model.backbone is not None else "float32"
        with autocast(self.device.type, precision):
            output = self.wrapped(
                batch.inputs.to(self.device, non_blocking=True),
                batch.labels.to(self.device, non_blocking=True),
                batch.images.to(self.device, non_blocking=True),
                batch.weights.to(self.device, non_blocking=True),
                batch.total_images,
            )
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        self.optimizer.step()
        self.step += 1
        sums.add(output, batch)

    def _post(self, epoch: int, share: float) -> None:
        if self.job.board is not None:
            self.job.board.progress.remote({"epoch": epoch, "share": share})

    def _checkpoint_within(self, position: Position, sums: EpochSums) -> None:
        sums.base = sums.total()
        sums.values.zero_()
        row = {"epoch": position.cursor.epoch, "step": position.step, "partial": True}
        self.report(row, position, sums.base)
        place = (self.job.config.seed, position.cursor.epoch, position.plan_step, self.rank)
        torch.manual_seed(hash(place) % 2**63)

    def report(self, row: dict[str, Any], position: Position | None, sums: Tensor | None) -> None:
        """Report to Ray (a barrier), with a checkpoint of `position` from rank 0.

        The upload goes on while training does; Ray deletes the local folder afterwards.
        """
        saved = None
        if self.rank == 0 and position is not None:
            folder = tempfile.mkdtemp(prefix="vgse-checkpoint-")
            save_checkpoint(
                Path(folder),
                self.model,
                self.optimizer,
                position.to_dict(),
                sums,
                self.job.fingerprint,
            )
            saved = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(
            row, checkpoint=saved, checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC
        )
