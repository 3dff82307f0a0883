"""What Ray Train's controller is told: figures are kept, and lost workers counted."""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray
import ray.exceptions
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distributed.display import Details
from distributed.train.metrics import append_metrics, read_metrics
from vgse.errors import UserError


@dataclass(frozen=True)
class Event:
    """Something that happened to the group of workers."""

    kind: Literal["started", "lost"]
    workers: int
    """Workers that started together, or that were lost together."""
    epoch: int
    """Number, from 1, of the epoch that is resumed; 0 for that of the last start."""
    cause: str = ""
    restart: int = 0
    """Restarts of the run that this one makes."""


@dataclass(frozen=True)
class News:
    """What a board holds that its reader has not seen."""

    progress: dict[str, Any]
    rows: list[dict[str, Any]]
    events: list[Event]


class _Board:
    def __init__(self) -> None:
        self._progress: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []
        self._events: list[Event] = []

    def progress(self, state: dict[str, Any]) -> None:
        """Replace what is known of the epoch under way."""
        self._progress = state

    def metrics(self, row: dict[str, Any]) -> None:
        """Append the figures of an epoch that ended."""
        self._rows.append(row)

    def event(self, event: Event) -> None:
        """Append what happened; progress of before no longer counts."""
        self._progress = {}
        if not event.epoch:
            started = [seen.epoch for seen in self._events if seen.kind == "started"]
            event = replace(event, epoch=started[-1] if started else 1)
        self._events.append(event)

    def read(self, rows: int, events: int) -> News:
        """The progress, and what came after the first `rows` rows and `events` events."""
        return News(self._progress, self._rows[rows:], self._events[events:])


def make_board() -> Any:
    """Start a board beside the driver, where the loss of a worker's node cannot take it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()


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
            if isinstance(error, UserError):
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


_SHORT = {"classification": "cls", "semantic": "sem", "consistency": "clu", "entropy": "ent"}
_RATE_S = 20.0  # seconds of posts that make the rate


def restarts_of(count: int, limit: int) -> str:
    """`1 of 3 restarts`, or `restart 1` without a limit."""
    return f"{count} of {limit} restarts" if limit >= 0 else f"restart {count}"


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass
class TrainingProgress:
    """The training as its board tells it; `take` brings it up to date."""

    epochs: int
    num_images: int
    num_clusters: int
    max_failures: int
    done: float = 0.0
    """Epochs that are done, the one under way by its share."""
    group: int = 0
    """Workers of the last group that started."""
    alive: int = 0
    """Workers alive; 0 before a group has started and while it starts anew."""
    restarts: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    """Figures of the last epoch that ended."""
    _posts: deque[tuple[float, float]] = field(default_factory=deque)

    def take(self, news: News, now: float) -> list[str]:
        """Bring in what is new; returns lines worth saying at once.

        Args:
            news: what the board holds.
            now: a clock's seconds.
        """
        for row in news.rows:
            self.last = row
            self.done = max(self.done, float(row["epoch"]))
        lines = [line for event in news.events if (line := self._happened(event))]
        if news.progress and self.alive:
            self.done = max(self.done, news.progress["epoch"] + news.progress["share"])
            self._posts.append((now, self.done))
            while now - self._posts[0][0] > _RATE_S:
                self._posts.popleft()
        return lines

    def _happened(self, event: Event) -> str:
        self._posts.clear()
        self.done = float(event.epoch - 1)
        if event.kind == "lost":
            self.alive, self.restarts = 0, event.restart
            who = "a worker was" if event.workers == 1 else f"{event.workers} workers were"
            said = f"{who} lost ({event.cause}); "
            if 0 <= self.max_failures < event.restart:
                return said + f"no restart is left of {self.max_failures}"
            said += restarts_of(event.restart, self.max_failures)
            return said + f", going on from epoch {event.epoch}"
        before, self.group, self.alive = self.group, event.workers, event.workers
        if before in (0, event.workers):
            return ""
        return f"now on {plural(event.workers, 'worker')} instead of {before}, epoch {event.epoch}"

    def rate(self) -> float:
        """Images a second: of the last seconds where workers posted any, else of the last epoch."""
        if len(self._posts) > 1 and self._posts[-1][0] > self._posts[0][0]:
            (start, first), (stop, last) = self._posts[0], self._posts[-1]
            return (last - first) * self.num_images / (stop - start)
        return float(self.last.get("images_per_second", 0.0))

    def details(self) -> Details:
        """Labels and texts: epoch, loss and its terms, speed, clusters and workers."""
        last = self.last
        rows = [("epoch", f"{min(self.epochs, int(self.done) + 1)} of {self.epochs}")]
        if "loss" in last:
            terms = [f"{short} {last[name]:.2f}" for name, short in _SHORT.items() if name in last]
            rows.append(("loss", f"{last['loss']:.3f} ({'  '.join(terms)})"))
        if self.alive and (rate := self.rate()):
            rows.append(("speed", f"{rate:,.0f} images/s"))
        if "used_clusters" in last:
            rows.append(("clusters", f"{last['used_clusters']} of {self.num_clusters} in use"))
        return [*rows, ("workers", self._workers())]

    def _workers(self) -> str:
        alive = f"{self.alive} of {self.group}" if self.alive else "starting"
        if not self.restarts:
            return alive
        return f"{alive}, {restarts_of(self.restarts, self.max_failures)}"
