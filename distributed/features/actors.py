"""Remote calls of one function: in Ray tasks on CPUs, and on GPUs, where Ray ends a task's process
with every call, in actors that load a backbone once for a whole stage."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
from ray.util import ActorPool

from distributed.cluster import bundle, describe_failure, fitting, least_workers
from vgse.config import ClusterConfig
from vgse.errors import UserError

_REPETITIONS = 3


class _Caller:
    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return function(*arguments)


def remote_results(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], config: ClusterConfig, gpu: bool
) -> Iterator[Any]:
    """Results of calls as they come, from CPUs or from GPUs."""
    if not gpu:
        return task_results(function, calls)
    threads = 1 + max(2, config.loader_workers, round(config.cpus_per_worker))
    # A search needs no room for all workers of a run; an actor without any would wait for ever.
    actors = int(min(len(calls), least_workers(config), max(1, fitting(bundle(config, gpu)))))
    return actor_results(function, calls, actors, cpus=config.cpus_per_worker, threads=threads)


def task_results(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Results as they come of calls in tasks of a CPU each, at most 64 of them in flight."""
    task = ray.remote(num_cpus=1, max_retries=_REPETITIONS)(function)
    flying: list[Any] = []
    waiting = iter(calls)
    while True:
        flying += [task.remote(*call) for call in itertools.islice(waiting, 64 - len(flying))]
        if not flying:
            return
        (done,), flying = ray.wait(flying)
        with lost_calls():
            result = ray.get(done)
        yield result


def actor_results(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    count: int,
    *,
    cpus: float,
    threads: int,
    gpus: float = 1,
) -> Iterator[Any]:
    """Results as they come of calls in `count` actors, each with several calls at a time, so that
    some read and cut while another computes. One that dies is replaced, its calls are repeated."""
    caller = ray.remote(_Caller).options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_concurrency=threads,
        max_restarts=_REPETITIONS,
        max_task_retries=_REPETITIONS,
    )
    actors: list[Any] = [caller.remote() for _ in range(count)]
    pool = ActorPool(actors * threads)
    try:
        for arguments in calls:
            pool.submit(lambda actor, given: actor.call.remote(function, given), arguments)
        while pool.has_next():
            with lost_calls():
                result = pool.get_next_unordered()
            yield result
    finally:
        for actor in actors:
            ray.kill(actor)


@contextmanager
def lost_calls() -> Iterator[None]:
    """A call's UserError as it was raised, and one where Ray lost the call and its repetitions."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        lost = f"{describe_failure(error)}; run the same command again to go on"
        raise UserError(lost) from error
