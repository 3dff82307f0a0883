"""Figures of an epoch, kept on the device and read when they are logged or saved."""

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
from vgse.config import LossConfig
from vgse.errors import UserError
from vgse.training.losses import world_size
from vgse.training.model import StepOutput

TERMS = ("classification", "semantic", "consistency", "entropy")
LOADING = ("read", "decode", "cut", "idle")
_COUNTS = len(TERMS)  # images, then images a worker's share stands for
_TIMES = _COUNTS + 2  # seconds waited, seconds in all, then those of LOADING
_TABLE = _TIMES + 2 + len(LOADING)


class Diverged(UserError):
    """A loss is not a finite number: an error of the configuration or the data, that starting
    again repeats."""


class EpochSums:
    """Losses, images, waiting time and the contingency table of classes and clusters.

    One float64 vector holds them all, so that one all-reduce reads them, and a checkpoint within
    an epoch can carry them.
    """

    def __init__(self, num_classes: int, num_clusters: int, device: torch.device) -> None:
        self.shape = (num_classes, num_clusters)
        self.base: Tensor | None = None  # what all workers had summed up at a checkpoint
        size = _TABLE + num_classes * num_clusters
        self.values = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, output: StepOutput, batch: StepBatch) -> None:
        """Add a step of this worker."""
        total_images = batch.total_images
        for place, name in enumerate(TERMS):
            if name in output.terms:
                # Terms are scaled to be averaged over workers; weigh a step by its images.
                self.values[place] += output.terms[name] * (total_images / world_size())
        # Whole numbers: the order in which a GPU adds them does not matter. bincount would wait.
        self.values[_TABLE:].scatter_add_(0, output.cells, (output.weights > 0).double())
        self.values[_COUNTS] += batch.num_images
        self.values[_COUNTS + 1] += total_images / world_size()
        for place, name in enumerate(LOADING, _TIMES + 2):
            self.values[place] += getattr(batch.times, name)

    def add_time(self, waited: float, seconds: float) -> None:
        """Add seconds that this worker waited for data, and seconds in all."""
        self.values[_TIMES] += waited
        self.values[_TIMES + 1] += seconds

    def total(self) -> Tensor:
        """The sums over all workers (a collective call), [size] float64 on the CPU.

        Raises:
            Diverged: a loss that is not finite, on every worker alike.
        """
        values = self.values.clone()
        if world_size() > 1:
            dist.all_reduce(values)
        values = values.cpu()
        if self.base is not None:
            values += self.base
        for name, value in zip(TERMS, values.tolist(), strict=False):
            if not math.isfinite(value):
                raise Diverged(
                    f"the {name} loss is {value}: lower training.learning_rate, or check that "
                    "features and word vectors are finite"
                )
        return values

    def row(self, config: LossConfig) -> dict[str, Any]:
        """The line of metrics.jsonl, without epoch and rates (a collective call).

        `worker_stall` is this worker's own, all others are figures of all workers.

        Raises:
            Diverged: a loss that is not finite.
        """
        values = self.total().numpy()
        own_waited, own_seconds = self.values[_TIMES : _TIMES + 2].tolist()
        images, weight, waited, seconds = values[_COUNTS : _TIMES + 2]
        active = [name for name in TERMS if getattr(config, name)]
        terms = {name: float(values[TERMS.index(name)] / weight) for name in active}
        contingency = values[_TABLE:].reshape(self.shape).astype(np.int64)
        used, entropy = health.usage(contingency.sum(0))
        return {
            "loss": sum(getattr(config, name) * value for name, value in terms.items()),
            **terms,
            "used_clusters": used,
            "usage_entropy": entropy,
            "nmi": health.normalised_mutual_information(contingency),
            "nmi_chance": health.chance_information(contingency, images),
            "seconds": seconds / world_size(),
            "images": int(images),
            "images_per_second": images / max(1e-9, seconds / world_size()),
            "loader_stall": waited / max(1e-9, seconds),
            "worker_stall": own_waited / max(1e-9, own_seconds),
            **{
                f"loader_{name}_seconds": float(value)
                for name, value in zip(LOADING, values[_TIMES + 2 : _TABLE], strict=True)
            },
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
    rows = [kept for kept in read_metrics(run) if kept["epoch"] < row["epoch"]] + [row]
    text = "".join(json.dumps(kept) + "\n" for kept in rows)
    write_bytes(join_url(absolute(run), FILE), text.encode())
