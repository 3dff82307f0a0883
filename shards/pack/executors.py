"""Ways to run independent pieces of work: here, in processes, or on a Ray cluster."""

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from typing import Any

from vgse.errors import UserError
from vgse.files import keep_sockets_short

Work = Callable[[Any], Any]
Run = Callable[[Work, Iterable[Any]], Iterator[Any]]
"""Calls a module-level function on every piece; results come in the order in which they finish."""


def choose_run(workers: int | None, ray: str | None = None) -> Run:
    """On Ray at an address, or in `workers` processes (default: one a core)."""
    if ray is not None:
        return partial(run_on_ray, ray)
    count = workers or len(os.sched_getaffinity(0))
    return run_here if count == 1 else partial(run_in_processes, count)


def run_here(work: Work, pieces: Iterable[Any]) -> Iterator[Any]:
    """One after the other in this process."""
    return map(work, pieces)


def run_in_processes(workers: int, work: Work, pieces: Iterable[Any]) -> Iterator[Any]:
    """In a pool of processes; what has not begun is dropped when the caller stops."""
    # A fork would copy the locks of a progress display's thread in whatever state.
    keep_sockets_short()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shards.pack.pack"])
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        for future in as_completed([pool.submit(work, piece) for piece in pieces]):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, most likely out of memory; "
            "run the same command again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_on_ray(address: str, work: Work, pieces: Iterable[Any]) -> Iterator[Any]:
    """As tasks of one core each; a task whose node dies is run again by Ray."""
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise UserError(f"ray={address}: {' '.join(str(error).split())}") from None
    task: Any = ray.remote(num_cpus=1)(work)
    rest = iter(pieces)
    limit = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    running = [task.remote(piece) for piece in islice(rest, limit)]
    try:
        while running:
            done, running = ray.wait(running)
            running += [task.remote(piece) for piece in islice(rest, len(done))]
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # Ray's own message is a traceback
    except ray.exceptions.RayError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"ray={address}: a task died again and again ({first}); check the nodes' "
            "memory, then run the same command again: finished shards are kept"
        ) from None
    finally:
        for reference in running:
            ray.cancel(reference)
