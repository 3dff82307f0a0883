"""run.log of a run folder: what the driver logs, and workers' lines with their rank."""

import logging
import logging.handlers
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from vgse.errors import UserError

LOG = "run.log"
_PACKAGES = ("vgse", "shards", "distributed", "tune")
_FORMAT = "%(asctime)s %(levelname)s %(source)s %(name)s: %(message)s"

logger = logging.getLogger(__name__)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a full disk is told where results are written."""


class _WorkerHandler(logging.handlers.QueueHandler):
    """Sends records away instead of into a queue."""

    def __init__(self, send: Callable[[logging.LogRecord], Any], source: str) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._send, self._source = send, source

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record, whose message and traceback are text by now."""
        record.source = self._source
        with suppress(Exception):  # the driver is gone
            self._send(record)


@contextmanager
def driver_log(folder: Path, *, verbose: bool) -> Iterator[None]:
    """Append what is logged inside to `run.log` in a folder, and show it if `verbose`."""
    handlers: list[logging.Handler] = [_LogFile(folder / LOG, delay=True)]
    if verbose:
        shown = logging.StreamHandler()
        shown.addFilter(lambda record: record.name != "distributed.display")  # shown already
        handlers.append(shown)
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT, defaults={"source": "driver"}))
    with _handling(handlers, "the run"):
        yield


@contextmanager
def shown_in_file(path: Path) -> Iterator[TextIO]:
    """Append what a terminal would show of what is inside to a file."""
    with path.open("a", encoding="utf-8") as stream, redirect_stdout(stream):
        yield stream


@contextmanager
def worker_log(send: Callable[[logging.LogRecord], Any], rank: int) -> Iterator[None]:
    """Send what a worker logs inside, with its rank, to the driver, which logs it as its own."""
    with _handling([_WorkerHandler(send, f"rank {rank}")], "training"):
        yield


@contextmanager
def _handling(handlers: list[logging.Handler], what: str) -> Iterator[None]:
    def ours_or_a_warning(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name.partition(".")[0] in _PACKAGES

    root = logging.getLogger()
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    for handler in handlers:
        handler.addFilter(ours_or_a_warning)
        root.addHandler(handler)
    try:
        yield
    except UserError as error:
        logger.error("%s stops: %s", what, error)
        raise
    except BaseException:  # a bug keeps its traceback, and so does ^C
        logger.exception("%s stops", what)
        raise
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
