"""What every Ray Train worker runs: the training loop, reporting to Ray."""

import json
import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from torch import nn

from distributed.board import Event
from distributed.epoch_sums import Diverged
from distributed.job import TrainingJob
from distributed.loop import train_epochs
from distributed.parallel import ddp_options
from vgse.model import TrainingModel


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
