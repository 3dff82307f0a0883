"""Room for the workers on the cluster: there, or with nodes that are still to come."""

import time
from collections.abc import Callable

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from vgse.config import ClusterConfig

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
