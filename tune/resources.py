"""How many trials a cluster has room for, and what each of them reserves."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import ray

from distributed.cluster import wants_gpu
from distributed.setup import Prepared
from tune.config import SearchConfig
from vgse.config import ClusterConfig
from vgse.errors import UserError


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
    """What the cluster has now; `max_concurrent` may ask for more trials of one worker, where
    nodes are added. Trials of several workers are never more than fit: Ray Train gives up on
    workers that wait long for a place.

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
    if fits < 1:
        takes = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if on_gpu else "")
        raise UserError(
            f"a trial takes {takes}, but the cluster has {has.get('CPU', 0):g} CPUs and "
            f"{has.get('GPU', 0):g} GPUs; lower workers_per_trial, gpus_per_trial or "
            "run.cluster.cpus_per_worker"
        )
    asked = config.max_concurrent or fits
    concurrent = asked if workers == 1 else min(asked, fits)
    return Room(concurrent, "cuda" if on_gpu else "cpu", gpus if on_gpu else 0)


def check_against_data(config: SearchConfig, prepared: Prepared) -> None:
    """See that every value that can be drawn fits the data.

    Raises:
        ValueError: the field of the space that does not.
    """
    manifest = prepared.manifest
    # Patches of the classes that trials train on: k-means has no others.
    names = {manifest.class_names[index] for index in prepared.trained}
    images = sum(
        count
        for shard in manifest.shards_of("train")
        for name, count in shard.class_counts.items()
        if name in names
    )
    limits = {
        "model.num_clusters": (images * manifest.num_patches, "patches of the training classes"),
        "model.projection": (prepared.num_features, "features of the backbone"),
        "relations.alpha": (1 / len(prepared.trained), "that of equal weights"),
    }
    for name, (limit, what) in limits.items():
        if name not in config.space:
            continue
        dimension = config.space[name]
        values = [v for v in (dimension.high, *(dimension.choices or [])) if v is not None]
        most = max(float(value) for value in values)
        if most > limit:
            raise UserError(
                f"space.{name} goes up to {most:g}, above {limit:g}, the number of {what}"
                if name != "relations.alpha"
                else f"space.{name} goes up to {most:g}; weights of at least that cannot sum to 1"
            )
