"""Metrics for TensorBoard and MLflow, sent from the driver beside the training."""

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distributed.storage import upload_file
from shards.objects import FIRST, is_remote, join_url, one_line
from vgse.config import RunConfig, TrackingConfig, leaves, to_dict
from vgse.errors import UserError

Row = dict[str, Any]


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row but its epoch; numbers of each worker are left to metrics.jsonl."""
    return {k: float(v) for k, v in row.items() if isinstance(v, int | float) and k != "epoch"}


class TensorBoard:
    """Event files in `tensorboard` of the run folder; by way of a local folder if it is a URL."""

    name = "tensorboard"

    def __init__(self, run: str) -> None:
        self._target, self._remote = join_url(run, "tensorboard"), is_remote(run)
        self._folder = tempfile.mkdtemp(prefix="vgse-tb-") if self._remote else self._target
        self._writer: Any = None
        self._sent = 0  # epochs

    def send(self, rows: list[Row]) -> None:
        """Add what is not written; rows of earlier files, if any, make way for the new file's."""
        from torch.utils.tensorboard import SummaryWriter

        new = [row for row in rows if row["epoch"] > self._sent]
        if not new:
            return
        if self._writer is None:
            self._writer = SummaryWriter(self._folder, purge_step=new[0]["epoch"])
        for row in new:
            for name, value in scalars(row).items():
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()
        if self._remote:
            for file in sorted(Path(self._folder).iterdir()):
                upload_file(file, join_url(self._target, file.name), retry=FIRST)
        self._sent = new[-1]["epoch"]

    def close(self, finished: bool) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
        if self._remote:
            shutil.rmtree(self._folder, ignore_errors=True)


_TAG = "vgse.run"


class MLflow:
    """A run in MLflow, found again by the address of the run folder when a run is resumed."""

    name = "mlflow"

    def __init__(self, config: RunConfig, run: str) -> None:
        self._config, self._run = config, run
        self._client: Any = None
        self._id = ""
        self._sent = 0  # epochs

    def send(self, rows: list[Row]) -> None:
        """Log what MLflow has not got; parameters once, with the run itself."""
        from mlflow.entities import Metric

        if not self._id:
            self._connect()
        for row in rows:
            if row["epoch"] > self._sent:
                now, step = int(time.time() * 1000), row["epoch"]
                metrics = [Metric(name, value, now, step) for name, value in scalars(row).items()]
                self._client.log_batch(self._id, metrics=metrics)
                self._sent = step

    def close(self, finished: bool) -> None:
        """Mark the run as finished or failed."""
        if self._id:
            self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")

    def _connect(self) -> None:
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        # Metrics can be sent later; a server that is away must not be waited for.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = client = MlflowClient(tracking_uri=self._config.tracking.mlflow)
        wanted = self._config.tracking.mlflow_experiment
        experiment = client.get_experiment_by_name(wanted)
        number = experiment.experiment_id if experiment else client.create_experiment(wanted)
        # A hash, because the filter language has no way to write a quote.
        mark = hashlib.sha256(self._run.encode()).hexdigest()
        known = client.search_runs([number], f"tags.`{_TAG}` = '{mark}'")
        if known:
            found = known[0].info.run_id
            history = client.get_metric_history(found, "loss")
            self._sent = max((metric.step for metric in history), default=0)
            client.update_run(found, status="RUNNING")
        else:
            tags = {_TAG: mark, "vgse.run_folder": self._run}
            name = self._run.rstrip("/").rpartition("/")[2]
            found = client.create_run(number, run_name=name, tags=tags).info.run_id
            params = [Param(name, str(value)) for name, value in leaves(to_dict(self._config))]
            for start in range(0, len(params), 100):  # as many as MLflow takes in one request
                client.log_batch(found, params=params[start : start + 100])
        self._id = found


def check_tracking(config: TrackingConfig) -> None:
    """See before any work that the trackers can be used."""
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "tracking.tensorboard is set, but TensorBoard is not installed; pip install "
            "tensorboard, or set it to false"
        )
    uri = config.mlflow
    if uri is None:
        return
    parts = urlsplit(uri)
    if parts.scheme in ("", "file") and not os.environ.get("MLFLOW_ALLOW_FILE_STORE"):
        path = Path(parts.path).absolute()
        raise UserError(
            f"tracking.mlflow is {uri}, a folder, which MLflow no longer writes; give "
            f"sqlite:///{path}/mlflow.db or the URL of a server"
        )
    if importlib.util.find_spec("mlflow") is None:
        raise UserError(
            "tracking.mlflow is set, but MLflow is not installed; pip install 'vgse[mlflow]'"
        )
    folder = Path(parts.path.removeprefix("/")).absolute().parent
    if parts.scheme == "sqlite" and parts.path and not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"tracking.mlflow is {uri}, but {folder} is no folder to write to; make it")


class Tracking:
    """Sends metrics from a thread of its own: a tracker that waits or fails stops nothing."""

    def __init__(
        self, trackers: Sequence[Any], history: Sequence[Row], say: Callable[[str], None]
    ) -> None:
        self._trackers, self._say = list(trackers), say
        self._rows = list(history)
        self._thread = ThreadPoolExecutor(1, "tracking")
        self._behind: set[str] = set()  # trackers that failed the last time

    def add(self, row: Row) -> Future[None]:
        """Send an epoch's row; it replaces rows of the same and of later epochs."""
        self._rows = [older for older in self._rows if older["epoch"] < row["epoch"]] + [row]
        return self._thread.submit(self._send, self._rows)

    def close(self, finished: bool) -> None:
        """Send what is missing, within a minute, and close the trackers."""
        last = self._thread.submit(self._close, self._rows, finished)
        if wait([last], 60).not_done:
            self._say("metrics are still being sent after 60 s: given up")
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _send(self, rows: list[Row]) -> None:
        for tracker in self._trackers:
            try:
                tracker.send(rows)
            except Exception as error:  # of whatever kind a server or a disk makes
                if tracker.name not in self._behind:
                    self._say(
                        f"{tracker.name} takes no metrics ({one_line(error)}); they are in "
                        "metrics.jsonl, and are sent when it does"
                    )
                self._behind.add(tracker.name)
            else:
                self._behind.discard(tracker.name)

    def _close(self, rows: list[Row], finished: bool) -> None:
        self._send(rows)
        for tracker in self._trackers:
            if tracker.name in self._behind:
                self._say(f"{tracker.name} lacks metrics of this run; metrics.jsonl has all")
            with suppress(Exception):
                tracker.close(finished)


@contextmanager
def tracking(
    config: RunConfig, run: str, history: Sequence[Row], say: Callable[[str], None]
) -> Iterator[Tracking]:
    """The configured trackers, open while a training runs; `history` are rows of epochs before."""
    trackers: list[Any] = [TensorBoard(run)] if config.tracking.tensorboard else []
    if config.tracking.mlflow is not None:
        trackers.append(MLflow(config, run))
    open_trackers, finished = Tracking(trackers, history, say), False
    try:
        yield open_trackers
        finished = True
    finally:
        open_trackers.close(finished)
