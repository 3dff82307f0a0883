"""How the clustering layer starts: a hashed sample of patch features, their PCA, k-means."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import ray
from numpy.typing import NDArray

from distributed.cluster import Say
from distributed.display import Display
from distributed.features.actors import remote_results, task_results
from distributed.features.cache import Unit, access_of, units_of
from distributed.features.sample import PatchSample, sample_of_units, sample_patches
from distributed.setup import Prepared
from distributed.storage import file_sizes, read_bytes, write_bytes
from shards.objects import join_url
from vgse import clusters
from vgse.clusters import Centroids, Projection
from vgse.config import RunConfig
from vgse.errors import UserError
from vgse.images.devices import memory_errors_in_one_line

if TYPE_CHECKING:
    from distributed.train.trainer import TrainingJob

_UNITS_A_TASK = 64


def has_start(run: str) -> bool:
    """Whether a run's clusters have their start."""
    return "centroids.npy" in file_sizes(join_url(run, "init"))


def run_kmeans(
    job: TrainingJob, prepared: Prepared, gpu: bool, display: Display, sample: PatchSample | None
) -> None:
    """k-means into `init` of the run folder, unless it is there. `sample` holds what the units that
    were just computed have of it; the others are read, by tasks on all nodes."""
    if sample is None:
        display.line("clusters    there already: init/centroids.npy")
        return
    with display.stage("clusters") as stage:
        units = units_of(prepared.manifest, ["train"])
        complete_sample(sample, job, units, stage.say)
        features = sample.features()
        count = len(features)
        shared = ray.put(features)
        del features  # as large as a copy in the store
        calls = [(shared, job.config, join_url(job.run, "init"), "cuda" if gpu else "cpu")]
        lone = replace(job.config.cluster, num_workers=1)
        (centroids,) = remote_results(start_from, calls, lone, gpu, stage.say)
        stage.summary = (
            f"k-means of {count:,} of {sample.population:,} patches into "
            f"{len(centroids.vectors)} on {centroids.device}, mean distance "
            f"{centroids.objective:.3f}"
        )


def complete_sample(sample: PatchSample, job: TrainingJob, units: Sequence[Unit], say: Say) -> None:
    """Add the units of the cache that a sample lacks; where images are missing and the sample with
    them, all units are asked for larger hashes."""
    access = access_of(job.config.data)
    while True:
        lacking = [unit for unit in units if unit.file not in sample.units]
        size = max(1, min(_UNITS_A_TASK, len(lacking) // 64))
        groups = [lacking[i : i + size] for i in range(0, len(lacking), size)]
        calls = [(job.folder, group, sample.sampling, access) for group in groups]
        patience = job.config.cluster.wait_for_workers
        for part, own in task_results(sample_of_units, calls, patience=patience, say=say):
            sample.add(part, own)
        if not sample.is_short:
            return
        sample.widen()


def make_start(
    folder: str,
    units: Sequence[Unit],
    labels: Sequence[int],
    config: RunConfig,
    *,
    num_patches: int,
    below: int,
    init: str | Path,
    device: Literal["cpu", "cuda"] = "cpu",
) -> Centroids:
    """The start of the clusters from the units of a cache, all read here."""
    features, _ = sample_patches(
        folder, units, labels, config, num_patches=num_patches, below=below
    )
    return start_from(features, config, init=init, device=device)


def start_from(
    features: NDArray[np.float16],
    config: RunConfig,
    init: str | Path,
    device: Literal["cpu", "cuda"] = "cpu",
) -> Centroids:
    """PCA and k-means of sampled patches [k, D_f] into the folder or URL `init`: `centroids.npy`
    [D_v, D_p] and, with a projection, `projection.npy` [D_p, D_f + 1], whose last column is the
    bias."""
    projection = None
    if config.model.projection:
        projection = clusters.fit_projection(features, config.model.projection)
        joined = np.concatenate([projection.weight, projection.bias[:, None]], 1)
        _write_array(join_url(str(init), "projection.npy"), joined)
    with memory_errors_in_one_line("lower model.max_points_per_centroid or model.num_clusters"):
        centroids = clusters.fit_centroids(
            clusters.project(features, projection),
            config.model.num_clusters,
            seed=config.seed,
            max_points_per_centroid=config.model.max_points_per_centroid,
            device=device,
        )
    # Last: its presence says that the start is complete.
    _write_array(join_url(str(init), "centroids.npy"), centroids.vectors)
    return centroids


def load_start(folder: str | Path) -> tuple[Projection | None, NDArray[np.float32]]:
    """What `make_start` wrote; FileNotFoundError if there is none."""
    centroids = _read_array(join_url(str(folder), "centroids.npy"))
    try:
        joined = _read_array(join_url(str(folder), "projection.npy"))
    except FileNotFoundError:
        return None, centroids
    return Projection(np.ascontiguousarray(joined[:, :-1]), joined[:, -1].copy()), centroids


def _write_array(url: str, array: NDArray[np.floating]) -> None:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    write_bytes(url, stream.getvalue())


def _read_array(url: str) -> NDArray[np.float32]:
    content = io.BytesIO(read_bytes(url))
    try:
        array: NDArray[np.float32] = np.load(content, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{url}: damaged ({error}); delete the file and run again") from None
    return array
