"""How many trials a cluster has room for, and what each of them reserves."""

from collections.abc import Callable
from dataclasses import replace

import ray
from ray.tune import PlacementGroupFactory

from distributed.cluster import wants_gpu
from tune.config import SearchConfig
from vgse.config import ClusterConfig
from vgse.errors import UserError


def search_cluster(config: SearchConfig) -> ClusterConfig:
    """The cluster that is joined or started: it holds at least a trial, and a finalist's run."""
    cluster = config.run.cluster
    most = max(cluster.num_workers, config.workers_per_trial)
    return replace(cluster, num_workers=most, min_workers=None)


def concurrent_trials(config: SearchConfig, say: Callable[[str], None]) -> tuple[int, str]:
    """Trials at a time, and the device that they are trained on, "cpu" or "cuda".

    `max_concurrent` may ask for more trials of one worker than fit now, where nodes are added.
    Trials of several workers are never more than fit: Ray Train gives up on workers that wait long
    for a place. Waits for the workers of one trial as a run waits for its own, and says so.
    """
    workers, cluster = config.workers_per_trial, config.run.cluster
    on_gpu = wants_gpu(replace(cluster, num_workers=workers, min_workers=None), say)
    has = ray.cluster_resources()
    cpus = max(cluster.cpus_per_worker, 0.001) * workers
    gpus = config.gpus_per_trial if workers == 1 else float(workers)
    fits = int(has.get("CPU", 0) / cpus + 1e-9)
    if on_gpu:
        fits = min(fits, int(has.get("GPU", 0) / gpus + 1e-9))
    if fits < 1:
        takes = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if on_gpu else "")
        raise UserError(
            f"a trial takes {takes}, but the cluster has {has.get('CPU', 0):g} CPUs and "
            f"{has.get('GPU', 0):g} GPUs; lower workers_per_trial, gpus_per_trial or "
            "run.cluster.cpus_per_worker"
        )
    asked = config.max_concurrent or fits
    return asked if workers == 1 else min(asked, fits), "cuda" if on_gpu else "cpu"


def trial_resources(config: SearchConfig, device: str) -> PlacementGroupFactory:
    """What a trial reserves: its worker, or next to nothing for one whose workers do so."""
    if config.workers_per_trial > 1:
        # Any part of a CPU for the drivers would leave too little for the workers of the last trial
        # that fits, and all would wait for ever.
        return PlacementGroupFactory([{"node:__internal_head__": 0.001}])
    bundle = {"CPU": max(config.run.cluster.cpus_per_worker, 0.001)}
    return PlacementGroupFactory(
        [bundle | ({"GPU": config.gpus_per_trial} if device == "cuda" else {})]
    )
