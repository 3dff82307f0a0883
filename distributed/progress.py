"""What is known of a training under way, and the words for it."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from distributed.board import Event, News
from distributed.display import Details

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
