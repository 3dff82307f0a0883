"""Ray Train's callback: rows of metrics, and the count of lost workers."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import ray.train

from distributed.cluster import describe_failure, is_death
from distributed.train.metrics import append_metrics, read_metrics
from distributed.train.progress import Row
from vgse.errors import UserError


class ReportCallback(ray.train.UserCallback):
    """Writes every report to metrics.jsonl, and counts lost workers; in the controller's process,
    where an exception ends the training and a call that waits holds it up."""

    def __init__(self, run: str, progress: Any) -> None:
        self.run, self.progress = run, progress
        rows = read_metrics(run)
        last = rows[-1] if rows else {}
        self.restarts: int = last.get("restarts", 0)  # with those of earlier calls of the run
        self.lost_seconds: float = last.get("restart_seconds", 0.0)
        self.losses = 0  # of this call
        self.epoch: int | None = None  # that a restart goes on with
        self.safe_at = time.time()  # what was done by then no restart takes away
        self.entered: float | None = None  # when the workers of the last report began

    def after_report(self, run_context: Any, metrics: list[Row], checkpoint: Any) -> None:
        """Write an epoch's row; those of all ranks are alike but for their own waiting."""
        row = dict(metrics[0])
        entered = row.pop("entered")
        row.pop("worker_stall", None)
        if entered != self.entered:
            if self.losses or self.entered is not None:
                self.lost_seconds += max(0.0, entered - self.safe_at)
            self.entered = entered
        if checkpoint is not None:
            # A row within an epoch counts epochs from 0, one at its end from 1.
            self.safe_at, self.epoch = time.time(), row["epoch"] + 1
        if row.get("partial"):
            return
        if len(metrics) > 1:
            row["worker_stalls"] = [report.get("worker_stall", 0.0) for report in metrics]
        row |= {"restarts": self.restarts, "restart_seconds": self.lost_seconds}
        append_metrics(self.run, row)
        self.progress.epoch_ended.remote(row)

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Count a loss of workers, or end, by a UserError, what would only fail again."""
        errors = worker_exceptions.values()
        if repeated := [error for error in errors if isinstance(error, UserError)]:
            raise repeated[0]
        self.losses += 1
        self.restarts += 1
        workers = sum(map(is_death, errors)) or len(errors)
        self.progress.workers_lost.remote(workers, self.epoch, cause_of(errors), self.losses)


def cause_of(errors: Iterable[BaseException]) -> str:
    """A few words on why workers failed: deaths first, since the others fail after them."""
    first = min(errors, key=lambda error: not is_death(error), default=None)
    return describe_failure(first) if first else "unknown"
