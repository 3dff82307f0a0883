"""Ways to run independent pieces of work: here, in processes, or on a Ray cluster."""

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Protocol, TypeVar

from vgse.errors import UserError

Piece = TypeVar("Piece")
Result = TypeVar("Result")


class Run(Protocol):
    """Calls a function on every piece; results come in the order in which they finish."""

    def __call__(
        self, work: Callable[[Piece], Result], pieces: Iterable[Piece]
    ) -> Iterator[Result]:
        """Results of `work`, a module-level function, one for every piece."""
        ...


def choose(workers: int | None, ray: str | None = None) -> Run:
    """Ray if an address is given, else as many processes as `workers` (default: one a core)."""
    if ray is not None:
        return OnRay(ray)
    count = workers or _num_cores()
    return run_here if count == 1 else InProcesses(count)


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_here(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
    """One after the other in this process."""
    yield from map(work, pieces)


class InProcesses:
    """A pool of processes; `work` must be a module-level function."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __call__(
        self, work: Callable[[Piece], Result], pieces: Iterable[Piece]
    ) -> Iterator[Result]:
        """Results as they finish; what has not begun is dropped when the caller stops."""
        methods = multiprocessing.get_all_start_methods()
        # A fork would copy the locks of a progress display's thread in whatever state.
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload([work.__module__])
        pool = ProcessPoolExecutor(self.workers, mp_context=context)
        rest = iter(pieces)
        try:
            running = {pool.submit(work, piece) for piece in islice(rest, 2 * self.workers)}
            while running:
                done: set[Future[Result]]
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(work, piece) for piece in islice(rest, len(done))}
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process died, most likely out of memory; "
                "run the same command again with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class OnRay:
    """Tasks of one core each on a Ray cluster."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(
        self, work: Callable[[Piece], Result], pieces: Iterable[Piece]
    ) -> Iterator[Result]:
        """Results as they finish; a task whose node dies is run again by Ray."""
        import ray

        if not ray.is_initialized():
            try:
                ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR)
            except ConnectionError as error:
                raise UserError(f"ray={self.address}: {' '.join(str(error).split())}") from None
        task: Any = ray.remote(num_cpus=1)(work)
        rest = iter(pieces)
        limit = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
        running = [task.remote(piece) for piece in islice(rest, limit)]
        try:
            while running:
                done, running = ray.wait(running)
                running += [task.remote(piece) for piece in islice(rest, len(done))]
                for reference in done:
                    yield ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # Ray's own message is a traceback
        except ray.exceptions.RayError as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"ray={self.address}: a task died again and again ({first}); check the nodes' "
                "memory, then run the same command again: finished shards are kept"
            ) from None
        finally:
            for reference in running:
                ray.cancel(reference)
