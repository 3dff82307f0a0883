"""Joining or starting a Ray cluster, quietly and with its token kept private."""

import logging
import math
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from joblib import cpu_count  # what a container may use, not what its machine has
from ray import exceptions
from ray.util.placement_group import placement_group, remove_placement_group

from distributed.display import plural
from vgse.config import ClusterConfig
from vgse.errors import UserError
from vgse.files import folder_for_sockets

Say = Callable[[str], None]
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # the longest
_ANSWER_S = 10.0
_RELEASE_S = 30.0  # a process that held a GPU has its memory taken down first
_SILENT_S = 2.0  # of it, before a line says so
_FIRST_LINE_S = 5.0
_NEXT_LINE_S = 60.0


def least_workers(config: ClusterConfig) -> int:
    """Workers below which training does not start."""
    return config.min_workers or config.num_workers


def bundle(config: ClusterConfig, gpu: bool) -> dict[str, float]:
    """What one worker takes."""
    return {"CPU": config.cpus_per_worker} | ({"GPU": 1.0} if gpu else {})


def shortfall(config: ClusterConfig, gpu: bool, *, taken: bool = True) -> str | None:
    """What the workers wait for, such as `waiting for 4 CPUs (2 there)`; None for nothing. With
    `taken`, where the workers themselves have nothing yet, only what is free counts."""
    count, worker = least_workers(config), bundle(config, gpu)
    there = ray.cluster_resources()
    free = ray.available_resources() if taken else there
    for name in ("GPU", "CPU"):
        need, have = count * worker.get(name, 0.0), there.get(name, 0.0)
        if need > have:
            return f"waiting for {_amount(need, name)} ({have:g} there)"
        if need > free.get(name, 0.0):
            return f"waiting for {_amount(need, name)} ({have:g} there, {free.get(name, 0):g} free)"
    if count > fitting(worker):
        each = " and ".join(_amount(number, name) for name, number in worker.items())
        return f"waiting for nodes with {each} for each of {count} workers"
    return None


def _shortfall_here(config: ClusterConfig, gpu: bool, say: Say) -> str | None:
    """As `shortfall`, on this machine's own cluster, after a moment for GPUs that are taken: where
    runs follow each other, processes of the last one may still be ending."""
    start, said = time.monotonic(), False
    while True:
        lack = shortfall(config, gpu)
        ends = lack is not None and "GPU" in lack and shortfall(config, gpu, taken=False) is None
        waited = time.monotonic() - start
        if not ends or waited > _RELEASE_S:
            return lack
        if waited > _SILENT_S and not said:
            say(f"waiting up to {_RELEASE_S:g} s for GPUs that are taken: training is {lack}")
            said = True
        time.sleep(0.2)


def _amount(number: float, name: str) -> str:
    return f"{number:g} {name}{'' if number == 1 else 's'}"


def fitting(worker: dict[str, float]) -> float:
    """Workers that the nodes take when nothing else runs on them."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = [(name, number) for name, number in worker.items() if number]
    return sum(
        min((node.get(name, 0.0) // number for name, number in needed), default=math.inf)
        for node in nodes
    )


def wait_for_room(config: ClusterConfig, gpu: bool, say: Say) -> str | None:
    """Have a cluster that scales add nodes for the least number of workers; returns None once
    there is room, or what was still lacking when the time was up."""
    if not any(bundle(config, gpu).values()):
        return None
    # It goes when the driver does; a request to the autoscaler would keep nodes up.
    group = placement_group([bundle(config, gpu)] * least_workers(config), strategy="PACK")
    deadline, pause = time.monotonic() + config.wait_for_gpus, _FIRST_LINE_S
    try:
        while not group.wait(max(0.01, min(pause, left := deadline - time.monotonic()))):
            lack = shortfall(config, gpu) or "waiting for room on the nodes"
            if left <= pause:
                return lack
            say(f"{lack}, {left - pause:,.0f} s at most")
            pause = _NEXT_LINE_S
        return None
    finally:
        remove_placement_group(group)


_QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def _private_token() -> None:
    """See that Ray's token is this user's alone; Ray itself would make it readable to all. A user
    without a home gets one for this process and its children."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.touch(0o600, exist_ok=False)
            path.write_text(secrets.token_hex(32))
        except FileExistsError:
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
    except (OSError, RuntimeError):  # RuntimeError: the user is in no list of users
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _address(config: ClusterConfig) -> str:
    """Where a cluster is; "local" for one that is started here, to which no node comes."""
    return config.address or os.environ.get("RAY_ADDRESS") or "local"


def _await_answer(address: str, name: str) -> None:
    """See that something listens at an address, for which Ray waits a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(
            f"{name} is {address!r}; give the head's HOST:PORT, such as 10.0.0.1:6379, or auto for "
            "a cluster on this machine"
        )
    deadline = time.monotonic() + _ANSWER_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
            return
        except (OSError, OverflowError) as error:  # a head may be starting, its name may be new
            if time.monotonic() > deadline:
                raise _no_answer(address, name, error) from None
        time.sleep(0.5)


def _no_answer(address: str, name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    instead = "leave it out" if name == "cluster.address" else f"unset {name}"
    return UserError(
        f"{name}: no Ray cluster answers at {address} ({reason}); start one with 'ray start "
        f"--head', or {instead} for a cluster on this machine alone"
    )


@contextmanager
def ray_cluster(
    config: ClusterConfig, *, verbose: bool = False, dashboard: bool = False
) -> Iterator[None]:
    """Join the cluster at `config.address` (or RAY_ADDRESS), or start one on this machine, with a
    `dashboard` if asked for, which is stopped on leaving; a Ray that this process had initialised
    is left as it was."""
    if ray.is_initialized():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    own: dict[str, object] = {}
    lent: dict[str, str] = {}  # what only the processes of a Ray of our own inherit
    address = _address(config)
    if address == "local":
        _private_token()
        needed = int(config.num_workers * config.cpus_per_worker)
        own = {"num_cpus": max(cpu_count(), needed), "include_dashboard": dashboard}
        # Nobody takes this machine away with notice: a process less to start.
        lent["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        if os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] != "1":  # Ray listens on loopback alone
            here = ray.util.get_node_ip_address()
            if here in ("127.0.0.1", "::1"):
                interface = "lo0" if sys.platform == "darwin" else "lo"
                lent |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
            else:
                logging.getLogger(__name__).warning(
                    "Ray was imported before the package `distributed`, so it listens on %s, not "
                    "on this machine's loopback alone; import `distributed` first",
                    here,
                )
        given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
        if folder := folder_for_sockets(given, _SOCKET):
            own["_temp_dir"] = f"{folder}/ray"
    name = "cluster.address" if config.address else "RAY_ADDRESS"
    if address not in ("auto", "local"):
        _await_answer(address, name)
        lent["RAY_gcs_server_port_wait_time_s"] = "1"  # attempts, each of which takes long
    with environment(lent):
        try:
            _start_ray(address, name, verbose, own)
            yield
        finally:
            ray.shutdown()


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Variables of processes that are started inside; what the user has set stays."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _start_ray(address: str, name: str, verbose: bool, own: dict[str, object]) -> None:
    try:
        ray.init(
            address=address,
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
            **own,  # type: ignore[arg-type]
        )
    except ConnectionError as error:
        raise _no_answer(address, name, error) from None
    except Exception as error:
        if type(error) is not Exception:  # Ray has no kind of its own for a node that is too slow
            raise
        raise UserError(
            "Ray did not start: this machine is busy or short of memory; "
            "run the same command again when it has room"
        ) from error


def wants_gpu(config: ClusterConfig, say: Say = lambda line: None) -> bool:
    """Whether training workers get a GPU each, by configuration and by what the cluster has; waits
    up to `config.wait_for_gpus` seconds for nodes of a cluster that is not this process's own."""
    count, own = least_workers(config), _address(config) == "local"
    there = ray.cluster_resources().get("GPU", 0)
    gpu = config.use_gpu == "yes" or (config.use_gpu == "auto" and there >= count)
    if config.use_gpu == "auto" and not gpu and (there or not own):
        instead = "--cluster.use_gpu yes waits for GPUs"
        if own:
            instead = f"--cluster.num_workers {there:g} trains on what there is"
        say(
            f"{plural(int(there), 'GPU')} for {plural(count, 'worker')}: training on CPUs "
            f"({instead})"
        )
    lack = _shortfall_here(config, gpu, say) if own else wait_for_room(config, gpu, say)
    if lack is None or (own and "GPU" not in lack):  # its CPUs count as many as there are workers
        return gpu
    waited = "" if own else f" after {config.wait_for_gpus:g} s"
    longer = "" if own else ", or raise cluster.wait_for_gpus"
    field, lower = f"num_workers is {config.num_workers}", "cluster.cpus_per_worker"
    if gpu:
        field, lower = f"use_gpu is {config.use_gpu}", "set cluster.use_gpu to no"
    raise UserError(
        f"cluster.{field}, but{waited} training is still {lack}; lower cluster.num_workers or "
        f"{lower}{longer}"
    )


_DEATHS: dict[type[BaseException], str] = {  # the first that fits
    exceptions.OutOfMemoryError: "its node ran out of memory",
    exceptions.NodeDiedError: "its node died",
    exceptions.ActorUnavailableError: "it does not answer",  # what is first seen of a lost node
    exceptions.RayActorError: "its process was killed or crashed, or its node died",
    exceptions.WorkerCrashedError: "its process was killed or crashed",
}


def is_death(error: BaseException) -> bool:
    """Whether a process is gone, rather than that it raised an error."""
    return isinstance(getattr(error, "health_check_failure", error), exceptions.RayError)


def lost_partner(error: BaseException) -> bool:
    """Whether a worker's partner is gone, which is often heard before the death itself."""
    from torch.distributed import DistError  # torch takes seconds, which most processes do without

    # NCCL and the store raise kinds of their own, gloo does not.
    return isinstance(error, DistError) or "gloo/transport" in str(error)


def describe_failure(error: BaseException) -> str:
    """What ended a remote process, in one line."""
    inner = getattr(error, "health_check_failure", error)
    for kind, meaning in _DEATHS.items():
        if isinstance(inner, kind):
            return meaning
    if lost_partner(error):
        return "the connection to it was lost"
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    if is_death(error) and lines:
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
