"""What is displayed of a training while it runs."""

# Without torch or Ray Train: the actor is a process more of each training.
import logging
import time
from collections import deque
from copy import copy
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distributed.display import Details, plural
from vgse.config import loss_symbols

Row = dict[str, Any]


class TrainingProgress:
    """What workers and controller tell of a training; an actor, which the driver reads."""

    def __init__(self, epochs: int, num_images: int, num_clusters: int, max_failures: int) -> None:
        self.epochs, self.num_images = epochs, num_images
        self.num_clusters, self.max_failures = num_clusters, max_failures
        self.done = 0.0  # epochs, the one under way by its share
        self.epoch = 1  # that the last group started with
        self.group = self.alive = self.restarts = 0  # alive: none while a group starts
        self.last: Row = {}
        self._shares: deque[tuple[float, float]] = deque()
        # Lines to print, epochs' metrics, records to log.
        self.news: list[str | Row | logging.LogRecord] = []

    def group_started(self, workers: int, epoch: int) -> None:
        """A group of workers goes on with an epoch, counted from 1."""
        if self.group not in (0, workers):
            self.say(f"now on {plural(workers, 'worker')} instead of {self.group}, epoch {epoch}")
        self.group = self.alive = workers
        self._go_back(epoch)

    def workers_lost(self, workers: int, epoch: int | None, cause: str, restart: int) -> None:
        """Workers are lost together; the group goes on with `epoch`, None: where it started."""
        self._go_back(epoch or self.epoch)
        self.alive, self.restarts = 0, restart
        who = "a worker was" if workers == 1 else f"{workers} workers were"
        then = f"{self._restarts()}, going on from epoch {self.epoch}"
        if 0 <= self.max_failures < restart:
            then = f"no restart is left of {self.max_failures}"
        self.say(f"{who} lost ({cause}); {then}")

    def _go_back(self, epoch: int) -> None:
        self.epoch, self.done = epoch, float(epoch - 1)
        self._shares.clear()

    def share_done(self, epoch: int, share: float, now: float | None = None) -> None:
        """A share of an epoch, counted from 0, is done."""
        if self.alive:
            now = time.monotonic() if now is None else now
            self.done = max(self.done, epoch + share)
            self._shares.append((now, self.done))
            while now - self._shares[0][0] > 20:  # seconds that make the rate
                self._shares.popleft()

    def epoch_ended(self, row: Row) -> None:
        """Metrics of an epoch."""
        self.last = row
        self.news.append(row)
        self.done = max(self.done, float(row["epoch"]))

    def say(self, item: str | logging.LogRecord) -> None:
        """A line to print at once, or a record for the run's log."""
        self.news.append(item)

    def update(self, seen: int = 0) -> Self:
        """A copy, with all news but the first `seen`."""
        state = copy(self)
        state.news = self.news[seen:]
        return state

    def rate(self) -> float:
        """Images a second: of the last seconds where workers told any, else of the last epoch."""
        if len(self._shares) > 1 and self._shares[-1][0] > self._shares[0][0]:
            (start, first), (stop, last) = self._shares[0], self._shares[-1]
            return (last - first) * self.num_images / (stop - start)
        return float(self.last.get("images_per_second", 0.0))

    def details(self) -> Details:
        """Labels and texts: epoch, losses, speed, clusters and workers."""
        last = self.last
        rows = [("epoch", f"{min(self.epochs, int(self.done) + 1)} of {self.epochs}")]
        if "loss" in last:
            terms = [f"{s} {last[name]:.2f}" for name, s in loss_symbols().items() if name in last]
            rows.append(("loss", f"{last['loss']:.3f} ({'  '.join(terms)})"))
        if self.alive and (rate := self.rate()):
            rows.append(("speed", f"{rate:,.0f} images/s"))
        if "used_clusters" in last:
            rows.append(("clusters", f"{last['used_clusters']} of {self.num_clusters} in use"))
        workers = f"{self.alive} of {self.group}" if self.alive else "starting"
        return [*rows, ("workers", workers + (f", {self._restarts()}" if self.restarts else ""))]

    def _restarts(self) -> str:
        limit = self.max_failures
        return f"{self.restarts} of {limit} restarts" if limit >= 0 else f"restart {self.restarts}"


def start_progress(*state: int) -> Any:
    """An actor of TrainingProgress on this node, where the loss of a worker's cannot take it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(TrainingProgress).options(num_cpus=0, scheduling_strategy=here)
    return actor.remote(*state)
