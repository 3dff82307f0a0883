"""What every Ray Train worker runs: the training loop, reporting to Ray."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from torch import nn

from distributed.job import TrainingJob
from distributed.loop import train_epochs
from vgse.model import TrainingModel


def train_worker(arguments: dict[str, TrainingJob]) -> None:
    """Train from the last committed checkpoint, or from k-means, to the last epoch."""
    job = arguments["job"]
    logging.getLogger("ray").setLevel(logging.ERROR)
    rank = ray.train.get_context().get_world_rank()

    def report(row: dict[str, Any], folder: Path | None) -> None:
        """A barrier over all ranks. The upload goes on while training does; Ray deletes the
        local folder afterwards."""
        if rank == 0 and job.board is not None and not row.get("partial"):
            job.board.metrics.remote(row)
        ray.train.report(
            row,
            checkpoint=ray.train.Checkpoint.from_directory(folder) if folder else None,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )

    with ExitStack() as open_things:
        checkpoint = ray.train.get_checkpoint()
        folder = open_things.enter_context(checkpoint.as_directory()) if checkpoint else None
        train_epochs(
            job,
            ray.train.torch.get_device(),
            rank,
            Path(folder) if folder else None,
            report,
            _parallel,
        )


def _parallel(model: TrainingModel) -> nn.Module:
    return ray.train.torch.prepare_model(
        model,
        parallel_strategy_kwargs={"broadcast_buffers": False},  # they never change
    )
