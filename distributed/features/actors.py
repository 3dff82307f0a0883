"""Remote calls on GPUs, in processes that last.

Ray ends the process of a task on a GPU after each call, since the GPU's memory would stay taken
otherwise. To start one and to load a backbone takes longer than to use it on a few hundred images:
here a process serves many calls, several at a time, and ends with the stage.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from distributed.cluster import bundle, fitting, least_workers
from distributed.train.callbacks import one_line
from vgse.config import ClusterConfig
from vgse.errors import UserError

_REPETITIONS = 3


class _Process:
    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


@dataclass(frozen=True)
class Processes:
    """Some processes that call one function; stands where a remote function does."""

    function: Callable[..., Any]
    actors: list[Any]
    flying: list[list[Any]]  # calls of each process that may not be done

    def remote(self, *arguments: Any) -> Any:
        """Call the function in the process with the fewest calls; returns a reference."""
        for calls in self.flying:
            done, _ = ray.wait(calls, num_returns=len(calls), timeout=0) if calls else ([], [])
            calls[:] = [call for call in calls if call not in done]
        least = min(range(len(self.actors)), key=lambda place: len(self.flying[place]))
        call = self.actors[least].run.remote(self.function, *arguments)
        self.flying[least].append(call)
        return call


@contextmanager
def remote_function(
    function: Callable[..., Any], config: ClusterConfig, gpu: bool, calls: int
) -> Iterator[Any]:
    """What calls `function` by `.remote(...)`: in tasks of a CPU each, or in processes of a GPU.

    Args:
        function: is called, on GPUs in several threads at once.
        config: what the cluster has room for.
        gpu: whether it computes on a GPU.
        calls: how many there will be.
    """
    if not gpu:
        yield ray.remote(num_cpus=1, max_retries=_REPETITIONS)(function)
        return
    threads = 1 + max(2, config.loader_workers, round(config.cpus_per_worker))
    # A search needs no room for all workers of a run; a process without any would wait for ever.
    count = min(calls, least_workers(config), max(1, fitting(bundle(config, gpu))))
    with gpu_processes(function, count, cpus=config.cpus_per_worker, threads=threads) as processes:
        yield processes


@contextmanager
def gpu_processes(
    function: Callable[..., Any], count: int, *, cpus: float, threads: int, gpus: float = 1
) -> Iterator[Processes]:
    """Processes with a GPU each, for as long as the context lasts.

    What a process loads (`functools.lru_cache`) stays for its later calls. One that dies is
    replaced, and its calls are repeated, three times at most.

    Args:
        function: is called; must bear being called in several threads at once.
        count: processes; the cluster has room for them.
        cpus: CPUs that each reserves.
        threads: calls at a time in each, so that some read and cut while another computes.
        gpus: GPUs that each reserves.
    """
    process = ray.remote(_Process).options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_concurrency=threads,
        max_restarts=_REPETITIONS,
        max_task_retries=_REPETITIONS,
    )
    actors: list[Any] = [process.remote() for _ in range(count)]
    try:
        yield Processes(function, actors, [[] for _ in actors])
    finally:
        for actor in actors:
            ray.kill(actor)


def results_of(calls: Iterator[tuple[Any, tuple[Any, ...]]], *, limit: int) -> Iterator[Any]:
    """Results of remote calls as they come, with at most `limit` of them in flight."""
    flying: list[Any] = []
    for function, arguments in calls:
        flying.append(function.remote(*arguments))
        if len(flying) >= limit:
            done, flying = ray.wait(flying)
            yield from map(result_of, done)
    while flying:
        done, flying = ray.wait(flying)
        yield from map(result_of, done)


def result_of(call: Any) -> Any:
    """The result of a remote call.

    Raises:
        ValueError: the one that ended the call, without Ray's account of where, or one line on why
            Ray lost the call and all its repetitions.
    """
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise UserError(f"{one_line(error)}; run the same command again to go on") from error
