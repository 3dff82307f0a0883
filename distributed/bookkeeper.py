"""What Ray Train's controller is told: figures are kept, and lost workers counted."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import ray.exceptions
import ray.train

from distributed.board import Event
from distributed.metrics import append_metrics, read_metrics


class Bookkeeper(ray.train.UserCallback):
    """Keeps every report, which Ray's own result does for retained checkpoints only.

    It lives in the controller's process. There, an exception ends the training, and a call that
    waits holds it up: figures go to trackers from the driver.
    """

    def __init__(self, run: str, board: Any) -> None:
        self.run, self.board = run, board
        rows = read_metrics(run)
        last = rows[-1] if rows else {}
        self.restarts: int = last.get("restarts", 0)  # with those of earlier calls of the run
        self.lost_seconds: float = last.get("restart_seconds", 0.0)
        self.losses = 0  # of this call
        self.epoch = 0  # that a restart goes on with; 0 is not known
        self.safe_at = time.time()  # what was done by then no restart takes away
        self.entered: float | None = None  # when the workers of the last report began

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Keep a report; those of all ranks are alike but for their own share of waiting."""
        rows = [dict(report) for report in metrics]
        entered, *_ = [row.pop("entered") for row in rows]
        stalls = [row.pop("worker_stall", 0.0) for row in rows]
        if entered != self.entered:
            if self.losses or self.entered is not None:
                self.lost_seconds += max(0.0, entered - self.safe_at)
            self.entered = entered
        row = rows[0]
        if checkpoint is not None:
            # A row within an epoch counts epochs from 0, one at its end from 1.
            self.safe_at, self.epoch = time.time(), row["epoch"] + 1
        if row.get("partial"):
            return
        if len(stalls) > 1:
            row["worker_stalls"] = stalls
        row |= {"restarts": self.restarts, "restart_seconds": self.lost_seconds}
        append_metrics(self.run, row)
        self.board.metrics.remote(row)

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Count a loss of workers, or end a training that would only fail again.

        Raises:
            ValueError: a mistake, a full disk, a loss that is not finite: what starting again
                would repeat.
        """
        for error in worker_exceptions.values():
            if isinstance(error, ValueError):
                raise error
        self.losses += 1
        self.restarts += 1
        dead = [error for error in worker_exceptions.values() if _died(error)]
        self.board.event.remote(
            Event(
                "lost",
                workers=len(dead) or len(worker_exceptions),
                epoch=self.epoch,
                cause=cause_of(worker_exceptions.values()),
                restart=self.losses,
            )
        )


def _died(error: BaseException) -> ray.exceptions.RayError | None:
    """Ray's word on a worker that is gone, rather than one that raised an error."""
    inner = getattr(error, "health_check_failure", error)
    return inner if isinstance(inner, ray.exceptions.RayError) else None


def cause_of(errors: Iterable[BaseException]) -> str:
    """A few words on why workers failed: deaths first, since the others fail after them."""
    ordered = sorted(errors, key=lambda error: _died(error) is None)
    return one_line(ordered[0]) if ordered else "unknown"


def one_line(error: BaseException) -> str:
    """What a worker ended with, in one line."""
    died = _died(error)
    if died is None:
        if any(words in str(error) for words in _HUNG_UP):
            return "the connection to it was lost"
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    text = str(died)
    for words, meaning in _DEATHS.items():
        if words in text:
            return meaning
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()


# What gloo and NCCL raise in a worker whose partner is gone; often heard before the death itself.
_HUNG_UP = ("gloo/transport", "remote process exited")

_DEATHS = {
    "running low on memory": "its node ran out of memory",
    "node died": "its node died",
    "is unavailable": "it does not answer",  # what is first seen of a node that went
    "unexpectedly exits": "its process was killed or crashed",
}
