"""How many trials a cluster has room for, and what each of them reserves."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import ray

from distributed.cluster import wants_gpu
from tune.config import SearchConfig
from vgse.config import ClusterConfig


@dataclass(frozen=True)
class Room:
    """What the cluster gives a search."""

    concurrent: int  # trials at the same time
    device: str  # "cpu" or "cuda"
    gpus: float  # of a trial of one worker


def cluster_of(config: SearchConfig) -> ClusterConfig:
    """The cluster that is joined or started: it holds at least a trial, and a finalist's run."""
    cluster = config.run.cluster
    most = max(cluster.num_workers, config.workers_per_trial)
    return replace(cluster, num_workers=most, min_workers=None)


def find_room(config: SearchConfig, say: Callable[[str], None]) -> Room:
    """What the cluster has now; `max_concurrent` may ask for more, where nodes are added.

    Waits for the workers of one trial as a run waits for its own, and says so.

    Raises:
        ValueError: not one trial fits.
    """
    workers, cluster = config.workers_per_trial, config.run.cluster
    on_gpu = wants_gpu(replace(cluster, num_workers=workers, min_workers=None), say)
    has = ray.cluster_resources()
    cpus = max(cluster.cpus_per_worker, 0.001) * workers
    gpus = config.gpus_per_trial if workers == 1 else float(workers)
    fits = int(has.get("CPU", 0) / cpus + 1e-9)
    if on_gpu:
        fits = min(fits, int(has.get("GPU", 0) / gpus + 1e-9))
    if fits < 1 and not config.max_concurrent:
        raise ValueError(
            f"a trial takes {cpus:g} CPUs"
            + (f" and {gpus:g} GPUs" if on_gpu else "")
            + ", but the "
            f"cluster has {has.get('CPU', 0):g} and {has.get('GPU', 0):g}; lower "
            "workers_per_trial, gpus_per_trial or run.cluster.cpus_per_worker"
        )
    return Room(config.max_concurrent or fits, "cuda" if on_gpu else "cpu", gpus if on_gpu else 0)
