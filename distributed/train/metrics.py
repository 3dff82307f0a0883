"""Metrics of an epoch, summed up on the device and read when they are logged or saved."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from distributed.storage import absolute, read_bytes, write_bytes
from distributed.train.data import StepBatch
from shards.objects import join_url
from vgse import health
from vgse.config import LossConfig, loss_symbols
from vgse.errors import UserError
from vgse.training.losses import world_size
from vgse.training.model import StepOutput

LOADING = ("read", "decode", "cut", "idle")


class Diverged(UserError):
    """A loss is not a finite number, which starting again repeats."""


class EpochSums:
    """Losses, images, waiting time and the contingency table of classes and clusters, in one
    float64 vector, which one all-reduce reads and a checkpoint within an epoch carries."""

    def __init__(self, num_classes: int, num_clusters: int, device: torch.device) -> None:
        self.losses = tuple(loss_symbols())
        # `weight` is a worker's share of the images of its steps.
        names = (*self.losses, "images", "weight", "waited", "seconds", *LOADING)
        self.index = {name: number for number, name in enumerate(names)}
        self.shape = (num_classes, num_clusters)
        self.base: Tensor | None = None  # what all workers had summed up at a checkpoint
        size = len(names) + num_classes * num_clusters
        self.values = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, output: StepOutput, batch: StepBatch) -> None:
        """Add a step of this worker."""
        weight = batch.total_images / world_size()
        for name in self.losses:
            if name in output.terms:
                # Terms are scaled to be averaged over workers; weigh a step by its images.
                self.values[self.index[name]] += output.terms[name] * weight
        # Whole numbers: the order in which a GPU adds them does not matter. bincount would wait.
        table = self.values[len(self.index) :]
        table.scatter_add_(0, output.cells, (output.weights > 0).double())
        self.values[self.index["images"]] += batch.num_images
        self.values[self.index["weight"]] += weight
        for name in LOADING:
            self.values[self.index[name]] += getattr(batch.times, name)

    def add_time(self, waited: float, seconds: float) -> None:
        """Add this worker's seconds: waiting for data, and in all."""
        self.values[self.index["waited"]] += waited
        self.values[self.index["seconds"]] += seconds

    def total(self) -> Tensor:
        """The sums over all workers (a collective call), [size] float64 on the CPU; raises
        Diverged for a loss that is not finite, on every worker alike."""
        values = self.values.clone()
        if world_size() > 1:
            dist.all_reduce(values)
        values = values.cpu()
        if self.base is not None:
            values += self.base
        for name in self.losses:
            if not math.isfinite(value := values[self.index[name]].item()):
                raise Diverged(
                    f"the {name} loss is {value}: lower training.learning_rate, or check that "
                    "features and word vectors are finite"
                )
        return values

    def row(self, config: LossConfig) -> dict[str, Any]:
        """The line of metrics.jsonl, without epoch and rates (a collective call); `worker_stall`
        is this worker's own, all others are of all workers."""
        values = self.total().numpy()
        total = {name: values[number] for name, number in self.index.items()}
        own = {name: self.values[self.index[name]].item() for name in ("waited", "seconds")}
        losses = {n: float(total[n] / total["weight"]) for n in self.losses if getattr(config, n)}
        contingency = values[len(self.index) :].reshape(self.shape).astype(np.int64)
        used, entropy = health.usage(contingency.sum(0))
        seconds = total["seconds"] / world_size()
        return {
            "loss": sum(getattr(config, name) * value for name, value in losses.items()),
            **losses,
            "used_clusters": used,
            "usage_entropy": entropy,
            "nmi": health.normalised_mutual_information(contingency),
            "nmi_chance": health.chance_information(contingency, total["images"]),
            "seconds": seconds,
            "images": int(total["images"]),
            "images_per_second": total["images"] / max(1e-9, seconds),
            "loader_stall": total["waited"] / max(1e-9, total["seconds"]),
            "worker_stall": own["waited"] / max(1e-9, own["seconds"]),
            **{f"loader_{name}_seconds": float(total[name]) for name in LOADING},
        }


FILE = "metrics.jsonl"


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, one an epoch; empty when there is no such file."""
    try:
        text = read_bytes(join_url(absolute(run), FILE)).decode()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines() if line]


def append_metrics(run: str | Path, row: dict[str, Any]) -> None:
    """Add an epoch's row; rows of a lost attempt at the same or later epochs make way."""
    rows = [older for older in read_metrics(run) if older["epoch"] < row["epoch"]] + [row]
    text = "".join(json.dumps(each) + "\n" for each in rows)
    write_bytes(join_url(absolute(run), FILE), text.encode())
