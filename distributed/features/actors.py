"""Remote calls of one function: in Ray tasks on CPUs, and on GPUs, where Ray ends a task's process
with every call, in actors that load a backbone once for a whole stage.

The calls of a process that is lost, alone, with its node or with its GPU, go to others; another
process starts in its place as soon as there is room.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from distributed.cluster import Say, describe_failure
from distributed.gpus import probe_gpu
from vgse.config import ClusterConfig
from vgse.errors import UserError
from vgse.images.devices import context_is_broken

# A call that is lost is repeated after so many seconds, longer in all than Ray takes to notice
# that a node is gone; one that is lost once more ends the stage: it may be what kills.
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
_LOOK_S = 10.0  # between two looks at the room there is
_FAILED_STARTS = 5

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Process:
    """What takes calls, `slots` at a time."""

    call: Callable[[Callable[..., Any], tuple[Any, ...]], Any]  # returns a reference
    slots: int
    ready: Any = None  # a reference that is there once calls are taken; None: at once
    end: Callable[[], None] | None = None  # None: Ray starts and ends what runs the calls
    lost: bool = False


@dataclass(eq=False)
class _Call:
    arguments: tuple[Any, ...]
    losses: int = 0
    due: float = 0.0


class BrokenGpu(Exception):
    """A process's GPU no longer computes: the process reports it and is ended, for it could serve
    no other call."""


class _Caller:
    def ready(self) -> None:
        """Answers once the process is up, and its GPU if it has one."""
        if ray.get_gpu_ids():
            probe = probe_gpu()
            if probe.fault:
                raise BrokenGpu(f"the GPU of {probe.node} does not compute: {probe.fault}")

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            if not context_is_broken():
                raise
            node, (text, *_) = ray.util.get_node_ip_address(), str(error).splitlines() or [""]
            raise BrokenGpu(f"the GPU of {node} failed: {text[:200]}") from error


def remote_results(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    config: ClusterConfig,
    gpu: bool,
    say: Say = lambda line: None,
) -> Iterator[Any]:
    """Results of calls as they come, from CPUs or from GPUs: as many as there are, in a run of
    `min_workers` to `num_workers` from the latter number at most."""
    patience = config.wait_for_workers
    if not gpu:
        return task_results(function, calls, patience=patience, say=say)
    threads = 1 + max(2, config.loader_workers, round(config.cpus_per_worker))
    count, cpus = config.num_workers, config.cpus_per_worker
    return actor_results(
        function, calls, count, cpus=cpus, threads=threads, patience=patience, say=say
    )


def task_results(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    *,
    patience: float = math.inf,
    say: Say = lambda line: None,
) -> Iterator[Any]:
    """Results as they come of calls in tasks of a CPU each, two for each CPU in flight."""
    task = ray.remote(num_cpus=1, max_retries=0)(function)

    def start() -> Process:
        return Process(lambda function, arguments: task.remote(*arguments), slots=2)

    def room() -> int:
        return int(ray.cluster_resources().get("CPU", 0))

    return call_results(function, calls, start, room, patience=patience, say=say)


def actor_results(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    count: int,
    *,
    cpus: float,
    threads: int,
    gpus: float = 1,
    patience: float = math.inf,
    say: Say = lambda line: None,
) -> Iterator[Any]:
    """Results as they come of calls in up to `count` actors, each with several calls at a time, so
    that some read and cut while another computes."""
    caller = ray.remote(_Caller).options(num_cpus=cpus, num_gpus=gpus, max_concurrency=threads)

    def start() -> Process:
        actor: Any = caller.remote()

        def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
            return actor.call.remote(function, *arguments)

        return Process(call, threads, actor.ready.remote(), lambda: ray.kill(actor))

    return call_results(function, calls, start, lambda: count, patience=patience, say=say)


def call_results(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    start: Callable[[], Process],
    room: Callable[[], int],
    *,
    patience: float = math.inf,
    say: Say = lambda line: None,
) -> Iterator[Any]:
    """Results as they come of calls in up to `room()` processes, which `start` makes.

    UserError where no process takes calls for `patience` seconds, or a call loses its process more
    often than it is repeated.
    """
    waiting = deque(map(_Call, calls))
    later: list[_Call] = []  # lost ones, until their pause is over
    starting: dict[Any, Process] = {}
    flying: dict[Any, tuple[_Call, Process]] = {}
    alive: set[Process] = set()
    free: deque[Process] = deque()  # a place for each call that a process could take
    failed, look, said, alone = 0, 0.0, -math.inf, time.monotonic()

    def take(process: Process) -> None:
        alive.add(process)
        free.extend([process] * process.slots)

    def lose(process: Process, error: Exception) -> None:
        nonlocal look, said
        if process.end is not None and not process.lost:
            process.lost, look = True, 0.0
            alive.discard(process)
            process.end()
        if time.monotonic() > said + _LOOK_S:
            say(f"a process was lost ({_cause(error)}); others do its work")
            said = time.monotonic()

    try:
        while waiting or later or flying:
            now = time.monotonic()
            waiting.extendleft(call for call in later if call.due <= now)
            later = [call for call in later if call.due > now]
            if now >= look:
                look, there = now + _LOOK_S, room()
                open_calls = len(waiting) + len(later) + len(flying)
                for _ in range(min(there, open_calls) - len(alive) - len(starting)):
                    process = start()
                    if process.ready is None:
                        take(process)
                    else:
                        starting[process.ready] = process
                if alive and there:
                    alone = now
                elif now - alone > patience:
                    raise UserError(
                        f"there was no room for a process on the cluster within {patience:g} s "
                        "(cluster.wait_for_workers); add nodes, then run the same command again"
                    )
            while waiting and free:
                process = free.popleft()
                if not process.lost:
                    call = waiting.popleft()
                    flying[process.call(function, call.arguments)] = call, process
            until = min([look, *(call.due for call in later)])
            for reference in _ready([*flying, *starting], until - time.monotonic()):
                if reference in starting:
                    process = starting.pop(reference)
                    try:
                        ray.get(reference)
                    except ray.exceptions.RayError as error:
                        failed, loss = failed + 1, _loss(error)
                        lose(process, loss)
                        if failed > max(_FAILED_STARTS, len(starting)):
                            if not alive:
                                raise _given_up(loss) from error
                            look = time.monotonic() + _LOOK_S  # one GPU may never come back
                    else:
                        failed, alone = 0, time.monotonic()
                        take(process)
                    continue
                call, process = flying.pop(reference)
                if not process.lost:
                    free.append(process)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    loss = _loss(error)
                    lose(process, loss)
                    if call.losses == len(_PAUSES_S):
                        raise _given_up(loss) from error
                    call.due = time.monotonic() + _PAUSES_S[call.losses]
                    call.losses += 1
                    later.append(call)
                else:
                    yield result
    finally:
        for process in (*alive, *starting.values()):
            if process.end is not None:
                process.end()


def _ready(references: list[Any], seconds: float) -> list[Any]:
    """Those of some references that are there, at once or after `seconds` at most; one look at
    all of them serves every result that has come."""
    if not references:
        time.sleep(max(0.0, min(seconds, 1.0)))
        return []
    done, rest = ray.wait(references, timeout=max(0.0, seconds), fetch_local=False)
    if done and rest:
        more, _ = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)
        done += more
    return done


def _loss(error: ray.exceptions.RayError) -> Exception:
    """How a call lost its process; raises what the call itself raised."""
    if not isinstance(error, ray.exceptions.RayTaskError):
        return error
    cause = error.cause
    if isinstance(cause, BrokenGpu):
        logger.warning("%s", error)  # with the call's traceback
        return cause
    if isinstance(cause, UserError):
        raise cause from None
    raise error


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, BrokenGpu) else describe_failure(error)


def _given_up(error: Exception) -> UserError:
    again = "run the same command again"
    if isinstance(error, BrokenGpu):
        return UserError(
            f"{_cause(error)} (in new processes too); take nodes whose kernel log (dmesg) has Xid "
            f"errors out of the cluster, or set cluster.use_gpu to no, then {again}"
        )
    return UserError(f"{_cause(error)}; {again} to go on")
