"""Loader processes that start quickly and hold nothing but what loading needs.

They are forked from a small server process that has imported shards.loader (and the store's
package) and nothing else: no Ray, no CUDA context, no thread or lock of the training process,
whose connections to a store would not survive a fork.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import context, forkserver
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess, SpawnProcess
from pathlib import Path
from typing import Any

_NAMES = ("__spec__", "__file__")
_ROOT = str(Path(__file__).resolve().parents[1])


class LeanForkProcess(ForkServerProcess):
    """A process of the server that does not import the training script."""

    def start(self) -> None:
        """Start it, as Process.start does."""
        with _importable(), _without_main():
            super().start()


class LeanSpawnProcess(SpawnProcess):
    """A fresh process that does not import the training script."""

    def start(self) -> None:
        """Start it, as Process.start does."""
        with _importable(), _without_main():
            super().start()


class LeanForkContext(ForkServerContext):
    """The forkserver, with lean processes."""

    Process = LeanForkProcess


class LeanSpawnContext(context.SpawnContext):
    """Spawn, with lean processes, where there is no forkserver."""

    Process = LeanSpawnProcess


def lean_context(url: str) -> BaseContext:
    """The context for the processes of a DataLoader that reads shards at `url`."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return LeanSpawnContext()
    # Has no effect on a server that runs already: its processes then import when they start.
    stores = ["s3fs"] if url.startswith(("s3://", "s3a://")) else []
    forkserver.set_forkserver_preload(["shards.loader", *stores])
    return LeanForkContext()


@dataclass(frozen=True)
class BeginLoader:
    """The worker_init_fn of a DataLoader: its process gets the environment of this moment, and
    ends when the training process does.

    A process of the server would have the environment of the server's start, and with it
    perhaps another address of the store.
    """

    variables: dict[str, str]

    def __call__(self, worker: int) -> None:
        """Set the variables and watch the parent."""
        os.environ.clear()
        os.environ.update(self.variables)
        # torch looks at the process that forked it: the server, which outlives a killed trainer
        # for as long as it has processes.
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _importable() -> Iterator[None]:
    """The path of this package for a server process, which does not take over sys.path."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = _ROOT if before is None else os.pathsep.join([_ROOT, before])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module, which a new process would import: a script without a guard would
    start its training again, and a Ray worker's would bring Ray along."""
    main = sys.modules["__main__"].__dict__
    hidden: dict[str, Any] = {name: main.pop(name) for name in _NAMES if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        del main["__spec__"]
        main.update(hidden)
