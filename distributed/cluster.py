"""Joining or starting a Ray cluster, quietly and with its token kept private."""

import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import ray
from ray._private import ray_constants
from ray._private.utils import get_num_cpus  # what a container may use, not what its machine has
from ray.util.placement_group import placement_group, remove_placement_group

from distributed.train.callbacks import plural
from vgse.config import ClusterConfig
from vgse.errors import UserError

Say = Callable[[str], None]
_FIRST_LINE_S = 5.0
_NEXT_LINE_S = 60.0


def least_workers(config: ClusterConfig) -> int:
    """Workers below which training does not start."""
    return config.min_workers or config.num_workers


def bundle(config: ClusterConfig, gpu: bool) -> dict[str, float]:
    """What one worker takes."""
    return {"CPU": config.cpus_per_worker} | ({"GPU": 1.0} if gpu else {})


def shortfall(config: ClusterConfig, gpu: bool, *, taken: bool = True) -> str | None:
    """What the workers wait for, such as `waiting for 4 CPUs (2 there)`; None for nothing.

    Args:
        config: the workers.
        gpu: whether each takes a GPU.
        taken: count only what is free, where the workers themselves have nothing yet.
    """
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


def _amount(number: float, name: str) -> str:
    return f"{number:g} {name}{'' if number == 1 else 's'}"


def fitting(worker: dict[str, float]) -> int:
    """Workers that the nodes take when nothing else runs on them."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = {name: number for name, number in worker.items() if number}
    if not needed:
        return 10**9
    return sum(
        int(min(node.get(name, 0.0) // number for name, number in needed.items())) for node in nodes
    )


def wait_for_room(config: ClusterConfig, gpu: bool, say: Say) -> str | None:
    """Hold a place for the least number of workers for a moment, so that a cluster that scales
    adds nodes for it.

    A placement group rather than a request to the autoscaler: it goes when the driver does,
    where a request would keep nodes up for good.

    Args:
        config: the workers, and how long to wait.
        gpu: whether each takes a GPU.
        say: prints a line while there is something to wait for.

    Returns:
        None once there is room, or what was still lacking when the time was up.
    """
    if not any(bundle(config, gpu).values()):
        return None
    group = placement_group([bundle(config, gpu)] * least_workers(config), strategy="PACK")
    started = time.monotonic()
    pause = _FIRST_LINE_S
    try:
        while True:
            left = config.wait_for_gpus - (time.monotonic() - started)
            if group.wait(max(0.01, min(pause, left))):
                return None
            lack = shortfall(config, gpu) or "waiting for room on the nodes"
            if left <= pause:
                return lack
            say(f"{lack}, {left - pause:,.0f} s at most")
            pause = _NEXT_LINE_S
    finally:
        remove_placement_group(group)


def could_have(name: str) -> float | None:
    """How much of a resource the node types of a cluster that scales allow; None where the
    cluster does not tell, as most do not."""
    try:
        from ray._private.state import state

        most = state.get_max_resources_from_cluster_config()
    except (ImportError, AttributeError):
        return None
    return None if most is None else float(most.get(name, 0))


_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # of what workers send each other
_QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # The controller takes one report a poll; the default of two seconds would rule short epochs.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def _private_token() -> None:
    """See that Ray's token is this user's alone; Ray itself would make it readable to all."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have a Ray that is started here, and its workers, listen on this machine's loopback alone.

    The variable is Ray's own: set to 0 it makes a node that no other can join, as on systems
    where Ray knows no clusters. Setting it to 1 before is asking for the opposite.
    """
    if os.environ.get(_CLUSTER) == "1":
        yield
        return
    before = ray_constants.ENABLE_RAY_CLUSTER
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    changed = {_CLUSTER: "0"} | {name: loopback for name in _INTERFACES if name not in os.environ}
    os.environ.update(changed)
    ray_constants.ENABLE_RAY_CLUSTER = False  # was read from the variable when Ray was imported
    try:
        yield
    finally:  # Ray's processes have it by now; those that this one starts later need it not
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name in changed:
            os.environ.pop(name, None)


def _hush() -> None:
    """Keep Ray from printing a paragraph for each dead worker or node, of which the display has a
    line. Ray reads the variable for this (RAY_DEDUP_LOGS_SKIP_REGEX) as early as it is imported.
    """
    try:
        from ray._private.ray_logging import stdout_deduplicator
    except ImportError:
        return
    if not stdout_deduplicator.skip_re:
        stdout_deduplicator.skip_re = re.compile("^A worker died or was killed|marked dead because")


def _address(config: ClusterConfig) -> str:
    return config.address or os.environ.get("RAY_ADDRESS") or "local"


def is_own(config: ClusterConfig) -> bool:
    """Whether the cluster is one that is started here, to which no node comes."""
    return _address(config) == "local"


@contextmanager
def ray_cluster(
    config: ClusterConfig, *, verbose: bool = False, dashboard: bool = False
) -> Iterator[None]:
    """Join the cluster at `config.address` (or RAY_ADDRESS), or start one on this machine.

    A cluster that was started here is stopped on leaving; one that was there already, also a
    Ray that this process had initialised before, is left as it was.

    Args:
        config: which cluster.
        verbose: let Ray's own log through.
        dashboard: start one, on loopback, with a cluster that is started here.

    Raises:
        ValueError: the address does not answer.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    address = _address(config)
    own: dict[str, object] = {}
    watched = _WATCHER in os.environ
    if not verbose:
        _hush()
    if is_own(config):
        _private_token()
        # Nobody takes this machine away with notice: a process less to start.
        os.environ.setdefault(_WATCHER, "0")
        needed = int(config.num_workers * config.cpus_per_worker)
        own = {"num_cpus": max(int(get_num_cpus()), needed), "include_dashboard": dashboard}
    try:
        with _on_loopback() if is_own(config) else nullcontext():
            ray.init(
                address=address,
                log_to_driver=verbose,
                logging_level=logging.INFO if verbose else logging.ERROR,
                **own,  # type: ignore[arg-type]
            )
    except ConnectionError as error:
        raise UserError(
            f"cluster.address: no Ray cluster answers at {address} ({error}); "
            "start one with 'ray start --head', or leave the address out"
        ) from None
    except Exception as error:  # Ray has no kind of its own for this
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "Ray did not start within half a minute: this machine is busy or short of memory; "
            "run the same command again when it has room"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
        if is_own(config) and not watched:
            os.environ.pop(_WATCHER, None)


def wants_gpu(config: ClusterConfig, say: Say = lambda line: None) -> bool:
    """Whether training workers get a GPU each, by configuration and by what the cluster has.

    Waits up to `config.wait_for_gpus` seconds for nodes: for those that scale up on demand, and
    for those that join slowly. A cluster of this process's own is as large as it will ever be.

    Args:
        config: what is asked for.
        say: prints a line, such as what is waited for.

    Raises:
        ValueError: there is no room for the workers.
    """
    count = least_workers(config)
    there = ray.cluster_resources().get("GPU", 0)
    most = could_have("GPU")
    if config.use_gpu == "auto" and there < count:
        if most is not None and most >= count:
            say("the cluster adds nodes with GPUs on demand; --cluster.use_gpu no takes CPUs")
        else:
            if there or not is_own(config):
                instead = (
                    f"--cluster.num_workers {there:g} trains on what there is"
                    if is_own(config)
                    else "--cluster.use_gpu yes waits for GPUs"
                )
                say(
                    f"{plural(int(there), 'GPU')} for {plural(count, 'worker')}: training on CPUs "
                    f"({instead})"
                )
            return _with_room(config, False, say)
    return _with_room(config, config.use_gpu != "no", say)


def _with_room(config: ClusterConfig, gpu: bool, say: Say) -> bool:
    """`gpu`, once there is room for the workers."""
    own = is_own(config)
    most = could_have("GPU") if gpu else None
    hopeless = own or (most is not None and most < least_workers(config))
    lack = shortfall(config, gpu) if hopeless else wait_for_room(config, gpu, say)
    if lack is None or (own and "GPU" not in lack):  # its CPUs count as many as there are workers
        return gpu
    waited = "" if hopeless else f" after {config.wait_for_gpus:g} s"
    limit = "" if most is None or not hopeless else f", and its node types allow {most:g} at most"
    if gpu:
        raise UserError(
            f"cluster.use_gpu is {config.use_gpu}, but{waited} training is still {lack}{limit}; "
            "lower cluster.num_workers or set cluster.use_gpu to no"
            + ("" if hopeless else ", or raise cluster.wait_for_gpus")
        )
    raise UserError(
        f"cluster.num_workers is {config.num_workers}, but{waited} training is still {lack}; "
        "lower cluster.num_workers or cluster.cpus_per_worker, or raise cluster.wait_for_gpus"
    )
