"""Training in this process alone: a trial of a search, or an experiment, without Ray Train."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distributed.train.spec import TrainingJob
from distributed.train.trainer import train_epochs
from vgse.training.model import TrainingModel


def train_alone(
    job: TrainingJob,
    *,
    checkpoint: Path | None = None,
    on_epoch: Callable[[dict[str, Any], Path | None], None] | None = None,
    device: str = "cpu",
) -> TrainingModel:
    """Train as one worker without a process group; returns the model.

    The result is that of a run with `cluster.num_workers=1`.

    Args:
        job: what to train; its run folder must hold `init/`.
        checkpoint: folder of a checkpoint to go on from.
        on_epoch: called with an epoch's figures and, where one is due, the folder of a checkpoint,
            which lives until the call returns.
        device: where to train.

    Raises:
        ValueError: the checkpoint belongs to another configuration or other data.
    """

    def report(row: dict[str, Any], folder: Path | None) -> None:
        try:
            if on_epoch is not None and not row.get("partial"):
                on_epoch(row, folder)
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    return train_epochs(job, torch.device(device), 0, checkpoint, report, lambda model: model)
