"""A tiny actor that tells the driver what workers and Ray Train's controller are at."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


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
