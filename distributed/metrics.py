"""Figures of every epoch, kept as JSON lines and for TensorBoard."""

import json
import os
from pathlib import Path
from typing import Any

import ray.train


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, one an epoch; empty when there is no such file."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def append_metrics(run: Path, row: dict[str, Any]) -> None:
    """Add an epoch's row; rows of a lost attempt at the same or later epochs make way."""
    rows = [kept for kept in read_metrics(run) if kept["epoch"] < row["epoch"]] + [row]
    part = run / ".metrics.part"
    part.write_text("".join(json.dumps(kept) + "\n" for kept in rows))
    os.replace(part, run / "metrics.jsonl")


class KeepMetrics(ray.train.UserCallback):
    """Keeps every report: Ray's own result holds those of retained checkpoints only."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._writer: Any = None

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Called by Ray's controller with the report of every rank; all are alike."""
        if metrics[0].get("partial"):
            return  # a checkpoint within an epoch
        from torch.utils.tensorboard import SummaryWriter

        append_metrics(Path(self.run), metrics[0])
        if self._writer is None:
            self._writer = SummaryWriter(f"{self.run}/tensorboard")
        for name, value in metrics[0].items():
            self._writer.add_scalar(name, value, metrics[0]["epoch"])
        self._writer.flush()
