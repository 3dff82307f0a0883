"""Figures for TensorBoard and MLflow, sent from the driver beside the training."""

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from distributed.trackers import MLflow, Row, TensorBoard, Tracker
from shards.access import short
from vgse.config import RunConfig, TrackingConfig

_LAST_WAIT_S = 60.0


def check_tracking(config: TrackingConfig) -> None:
    """See before any work that the trackers can be used.

    Raises:
        ValueError: one line that names the field and the remedy.
    """
    uri = config.mlflow
    if uri is None:
        return
    parts = urlsplit(uri)
    if parts.scheme in ("", "file") and not os.environ.get("MLFLOW_ALLOW_FILE_STORE"):
        path = Path(parts.path).absolute()
        raise ValueError(
            f"tracking.mlflow is {uri}, a folder, which MLflow no longer writes; give "
            f"sqlite:///{path}/mlflow.db or the URL of a server"
        )
    if importlib.util.find_spec("mlflow") is None:
        raise ValueError(
            "tracking.mlflow is set, but MLflow is not installed; pip install 'vgse[mlflow]'"
        )


class Tracking:
    """Sends figures from a thread of its own: a tracker that waits or fails stops nothing."""

    def __init__(
        self, trackers: Sequence[Tracker], history: Sequence[Row], say: Callable[[str], None]
    ) -> None:
        self._trackers, self._say = list(trackers), say
        self._rows = list(history)
        self._thread = ThreadPoolExecutor(1, "tracking")
        self._behind: set[str] = set()  # trackers that failed the last time
        self._jobs: list[Future[None]] = []

    def add(self, row: Row) -> None:
        """Send an epoch's row; it replaces rows of the same and of later epochs."""
        self._rows = [kept for kept in self._rows if kept["epoch"] < row["epoch"]] + [row]
        self._jobs.append(self._thread.submit(self._send, list(self._rows)))

    def close(self, finished: bool) -> None:
        """Send what is missing, within a minute, and close the trackers."""
        self._jobs.append(self._thread.submit(self._close, list(self._rows), finished))
        if wait(self._jobs, _LAST_WAIT_S).not_done:
            self._say(f"figures are still being sent after {_LAST_WAIT_S:.0f} s: given up")
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _send(self, rows: list[Row]) -> None:
        for tracker in self._trackers:
            try:
                tracker.send(rows)
            except Exception as error:  # of whatever kind a server or a disk makes
                if tracker.name not in self._behind:
                    self._say(
                        f"{tracker.name} takes no figures ({short(error)}); they are in "
                        "metrics.jsonl, and are sent when it does"
                    )
                self._behind.add(tracker.name)
            else:
                self._behind.discard(tracker.name)

    def _close(self, rows: list[Row], finished: bool) -> None:
        self._send(rows)
        for tracker in self._trackers:
            if tracker.name in self._behind:
                self._say(f"{tracker.name} lacks figures of this run; metrics.jsonl has all")
            with suppress(Exception):
                tracker.close(finished)


@contextmanager
def tracking(
    config: RunConfig, run: str, history: Sequence[Row], say: Callable[[str], None]
) -> Iterator[Tracking]:
    """The trackers that the configuration names, open for the time of a training.

    Args:
        config: the run's configuration.
        run: its folder, a path or a URL.
        history: rows of epochs that ended before, oldest first.
        say: prints a line.
    """
    trackers: list[Tracker] = []
    if config.tracking.tensorboard:
        trackers.append(TensorBoard(run))
    if config.tracking.mlflow is not None:
        trackers.append(MLflow(config, run))
    open_trackers = Tracking(trackers, history, say)
    try:
        yield open_trackers
    except BaseException:
        open_trackers.close(finished=False)
        raise
    open_trackers.close(finished=True)
