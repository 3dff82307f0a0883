"""How the clustering layer starts: a hashed sample of patch features, their PCA, k-means."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import ray
from numpy.typing import NDArray

from distributed.display import Display
from distributed.features.actors import lost_calls
from distributed.features.cache import Unit, access_of, read_unit, units_of
from distributed.setup import Prepared
from distributed.storage import file_sizes, read_bytes, write_bytes
from shards.objects import join_url
from vgse import clusters
from vgse.clusters import Centroids, Projection, patch_hashes
from vgse.config import RunConfig
from vgse.errors import UserError

if TYPE_CHECKING:
    from distributed.train.trainer import TrainingJob

Hashed = tuple[NDArray[np.uint64], NDArray[np.int64]]
"""Hashes [n] of patches, and the unit of each with its place there [n, 2]."""


def run_kmeans(job: TrainingJob, prepared: Prepared, gpu: bool, display: Display) -> None:
    """k-means into `init` of the run folder, unless it is there."""
    init = join_url(job.run, "init")
    if "centroids.npy" in file_sizes(init):
        display.line("clusters    there already: init/centroids.npy")
        return
    with display.stage("clusters") as stage:
        task: Any = ray.remote(make_start)  # type: ignore[arg-type]  # takes keywords
        call = task.options(num_cpus=1, num_gpus=int(gpu), max_retries=3).remote(
            job.folder,
            units_of(prepared.manifest, ["train"]),
            job.classes,
            job.config,
            num_patches=prepared.manifest.num_patches,
            below=job.spec.sample_below,
            init=init,
            device="cuda" if gpu else "cpu",
        )
        with lost_calls():
            centroids, sampled, population = ray.get(call)
        stage.summary = (
            f"k-means of {sampled:,} of {population:,} patches into {len(centroids.vectors)} "
            f"on {centroids.device}, mean distance {centroids.objective:.3f}"
        )


def sample_patches(
    folder: str,
    units: Sequence[Unit],
    labels: Sequence[int],
    config: RunConfig,
    *,
    num_patches: int,
    below: int,
) -> tuple[NDArray[np.float16], int]:
    """Features [k, D_f] of the patches of some classes with the smallest hashes, whatever the order
    of the units, and how many patches they were drawn from. Memory is bounded by the sample. The
    cache holds patches whose hash lies under `below`."""
    sample_size = config.model.num_clusters * config.model.max_points_per_centroid
    seed, access = config.seed, access_of(config.data)
    parts: list[Hashed] = []
    population = 0
    for number, unit in enumerate(units):
        content = read_unit(folder, unit, access)
        chosen = np.isin(content.labels.numpy(), labels)
        drawn = patch_hashes(content.keys, num_patches, seed)
        population += int(chosen.sum()) * num_patches
        flat = np.flatnonzero((chosen[:, None] & (drawn < np.uint64(below))).ravel())
        parts.append((drawn.ravel()[flat], np.stack([np.full(len(flat), number), flat], 1)))
        if sum(len(hashes) for hashes, _ in parts) > 2 * sample_size:
            parts = [_smallest(parts, sample_size)]
    _, owners = _smallest(parts, sample_size)

    rows, names = [], []
    for number, unit in enumerate(units):
        content = read_unit(folder, unit, access)
        flat = np.sort(owners[owners[:, 0] == number, 1])
        names += [f"{content.keys[i // num_patches]}/{i % num_patches:04d}" for i in flat]
        if content.patches.dim() == 3:
            rows.append(content.patches.flatten(0, 1)[flat].numpy())
            continue
        # Only the sampled patches are stored, in their order within the unit.
        hashes = patch_hashes(content.keys, num_patches, seed).ravel()
        stored = np.flatnonzero(hashes < np.uint64(below))
        rows.append(content.patches[np.searchsorted(stored, flat)].numpy())
    features = np.concatenate(rows)
    return features[np.argsort(np.array(names), kind="stable")], population


def _smallest(parts: Sequence[Hashed], size: int) -> Hashed:
    """The patches with the smallest hashes of some, in no order."""
    hashes = np.concatenate([hashes for hashes, _ in parts])
    owners = np.concatenate([owners for _, owners in parts])
    if len(hashes) <= size:
        return hashes, owners
    chosen = np.argpartition(hashes, size - 1)[:size]
    return hashes[chosen], owners[chosen]


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
) -> tuple[Centroids, int, int]:
    """PCA and k-means of sampled patches into the folder or URL `init`: `centroids.npy` [D_v, D_p]
    and, with a projection, `projection.npy` [D_p, D_f + 1], whose last column is the bias. Returns
    the centroids, the patches they are made of, and those the sample was drawn from."""
    features, population = sample_patches(
        folder, units, labels, config, num_patches=num_patches, below=below
    )
    projection = None
    if config.model.projection:
        projection = clusters.fit_projection(features, config.model.projection)
        joined = np.concatenate([projection.weight, projection.bias[:, None]], 1)
        _write_array(join_url(str(init), "projection.npy"), joined)
    centroids = clusters.fit_centroids(
        clusters.project(features, projection),
        config.model.num_clusters,
        seed=config.seed,
        max_points_per_centroid=config.model.max_points_per_centroid,
        device=device,
    )
    # Last: its presence says that the start is complete.
    _write_array(join_url(str(init), "centroids.npy"), centroids.vectors)
    return centroids, len(features), population


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
