"""The training loop that every Ray Train worker runs."""

import logging
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from distributed.batches import StepBatch, epoch_batches, open_dataset, plan_epoch
from distributed.checkpoint import load_checkpoint, save_checkpoint
from distributed.features import FeatureSpec
from distributed.start import load_start
from shards import cursor as cursors
from vgse import health
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
    context = ray.train.get_context()
    rank = context.get_world_rank()
    device = ray.train.torch.get_device()
    model = build_model(job).to(device)
    optimizer = build_optimizer(model, job.config)
    dataset = open_dataset(job, device)
    seed = job.config.seed
    cursor = cursors.start_of(dataset.manifest, dataset.selection, seed=seed)
    checkpoint = ray.train.get_checkpoint()
    step = 0
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state, step = load_checkpoint(Path(folder), model, optimizer, job.fingerprint)
        cursor = cursors.restore(state, dataset.manifest, dataset.selection)
    wrapped: nn.Module = model
    if world_size() > 1:
        wrapped = ray.train.torch.prepare_model(
            model,
            parallel_strategy_kwargs={"broadcast_buffers": False},  # they never change
        )
    for epoch in range(cursor.epoch, job.config.training.epochs):
        # Drawn anew from these three, random numbers need no place in a checkpoint.
        torch.manual_seed(hash((seed, epoch, rank)) % 2**63)
        plan = plan_epoch(dataset, cursor, world_size())
        batches = epoch_batches(
            dataset, cursor, plan, rank, patch_size=job.config.backbone.patch_size, device=device
        )
        row = _train_epoch(job, wrapped, optimizer, batches, epoch, rank, device)
        step += plan.steps
        row = {"epoch": epoch + 1, "step": step, **row}
        cursor = cursors.start_of(dataset.manifest, dataset.selection, seed=seed, epoch=epoch + 1)
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            due = (epoch + 1) % job.config.training.checkpoint_epochs == 0
            if rank == 0 and (due or epoch + 1 == job.config.training.epochs):
                state = cursor.to_dict()
                save_checkpoint(Path(folder), model, optimizer, state, step, job.fingerprint)
                saved = ray.train.Checkpoint.from_directory(folder)
            if rank == 0 and job.board is not None:
                job.board.metrics.remote(row)
            ray.train.report(row, checkpoint=saved)


def _train_epoch(
    job: TrainingJob,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[StepBatch],
    epoch: int,
    rank: int,
    device: torch.device,
) -> dict[str, Any]:
    config = job.config
    model.train()
    sums = _EpochSums(len(job.classes), config.model.num_clusters, device)
    started = posted = time.monotonic()
    waited = 0.0
    while True:
        asked = time.monotonic()
        batch = next(batches, None)
        waited += time.monotonic() - asked
        if batch is None:
            break
        progress = (epoch + batch.done_before) / config.training.epochs
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(progress)
        with autocast(device.type, job.precision if model_has_backbone(model) else "float32"):
            output = model(
                batch.inputs.to(device, non_blocking=True),
                batch.labels.to(device),
                batch.images.to(device),
                batch.weights.to(device),
                batch.total_images,
            )
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        optimizer.step()
        sums.add(output.terms, output.contingency, batch)
        if rank == 0 and job.board is not None and time.monotonic() - posted > _POST_INTERVAL_S:
            posted = time.monotonic()
            job.board.progress.remote({"epoch": epoch, "share": batch.done_before})
    seconds = time.monotonic() - started
    rate = optimizer.param_groups[0]["lr"]
    row = sums.reduce(config, waited, seconds)
    return {**row, "learning_rate": rate}


def model_has_backbone(model: nn.Module) -> bool:
    """Whether θ is part of the training step."""
    raw = getattr(model, "module", model)
    return isinstance(raw, TrainingModel) and raw.backbone is not None


class _EpochSums:
    """Figures of an epoch, kept on the device and read once at its end."""

    def __init__(self, num_classes: int, num_clusters: int, device: torch.device) -> None:
        self.shape = (num_classes, num_clusters)
        self.device = device
        self.terms: dict[str, Tensor] = {}
        self.contingency = torch.zeros(num_classes * num_clusters, device=device)
        self.images = 0.0
        self.weight = 0.0

    def add(self, terms: dict[str, Tensor], cells: Tensor, batch: StepBatch) -> None:
        for name, term in terms.items():
            # Terms are scaled to be averaged over workers; weigh a step by its images.
            share = term * (batch.total_images / world_size())
            self.terms[name] = self.terms.get(name, torch.zeros((), device=self.device)) + share
        self.contingency += torch.bincount(cells, minlength=len(self.contingency))
        self.images += float(batch.weights.sum())
        self.weight += batch.total_images

    def reduce(self, config: RunConfig, waited: float, seconds: float) -> dict[str, Any]:
        names = sorted(self.terms)
        packed = torch.cat(
            [
                torch.stack([self.terms[n] for n in names]).double()
                if names
                else torch.zeros(0, dtype=torch.float64, device=self.device),
                torch.tensor([self.images, waited], dtype=torch.float64, device=self.device),
                self.contingency.double(),
            ]
        )
        if world_size() > 1:
            dist.all_reduce(packed)
        values = packed.cpu().numpy()
        terms = dict(zip(names, (values[: len(names)] / self.weight).tolist(), strict=True))
        bad = [name for name, value in terms.items() if not math.isfinite(value)]
        if bad:
            raise ValueError(
                f"the {bad[0]} loss is not finite: lower training.learning_rate, or check the "
                "data for broken images"
            )
        images, waited = values[len(names)], values[len(names) + 1] / world_size()
        contingency = values[len(names) + 2 :].reshape(self.shape).astype(np.int64)
        used, entropy = health.usage(contingency.sum(0))
        return {
            "loss": sum(getattr(config.loss, name) * value for name, value in terms.items()),
            **terms,
            "used_clusters": used,
            "usage_entropy": entropy,
            "nmi": health.normalised_mutual_information(contingency),
            "images_per_second": images / seconds,
            "loader_stall": waited / seconds,
        }
