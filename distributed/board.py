"""A tiny actor through which workers tell the driver how far they are."""

from typing import Any

import ray


@ray.remote(num_cpus=0)
class Board:
    """Keeps the latest progress and all metrics of a run in memory."""

    def __init__(self) -> None:
        self._progress: dict[str, Any] = {}
        self._metrics: list[dict[str, Any]] = []

    def progress(self, state: dict[str, Any]) -> None:
        """Replace what is known of the epoch under way."""
        self._progress = state

    def metrics(self, row: dict[str, Any]) -> None:
        """Append the figures of an epoch that ended."""
        self._metrics.append(row)

    def read(self, after: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The progress, and all metrics after the first `after`."""
        return self._progress, self._metrics[after:]
