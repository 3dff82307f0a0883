"""How the clustering layer starts: a hashed sample of patch features, their PCA, k-means."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from distributed.display import Display
from distributed.features.actors import result_of
from distributed.features.cache import (
    FeatureSpec,
    Unit,
    UnitFeatures,
    access_of,
    read_unit,
    units_of,
)
from distributed.setup import Prepared
from distributed.storage import absolute, file_sizes, read_bytes, write_bytes
from shards.objects import ACCESS, Access, join_url
from vgse.clusters import (
    Centroids,
    Projection,
    fit_centroids,
    fit_projection,
    patch_hashes,
    project,
)
from vgse.config import ModelConfig, RunConfig
from vgse.errors import UserError

Hashed = tuple[NDArray[np.uint64], NDArray[np.int64]]
"""Hashes [n] of patches, and the unit of each with its place there [n, 2]."""


@dataclass(frozen=True)
class PatchSample:
    """The k patches with the smallest hashes, sorted by image key and place."""

    features: NDArray[np.float16]  # [k, D_f]
    population: int  # patches they were drawn from


def run_kmeans(
    config: RunConfig,
    prepared: Prepared,
    spec: FeatureSpec,
    folder: str | Path,
    run: str | Path,
    gpu: bool,
    display: Display,
) -> None:
    """k-means into `init` of the run folder, a local one or a URL, unless it is there."""
    init = join_url(absolute(run), "init")
    if "centroids.npy" in file_sizes(init):
        display.line("clusters    there already: init/centroids.npy")
        return
    with display.stage("clusters") as stage:
        task: Any = ray.remote(make_start)  # type: ignore[arg-type]  # takes keywords
        call = task.options(num_cpus=1, num_gpus=1 if gpu else 0, max_retries=3).remote(
            str(folder),
            units_of(prepared.manifest, ["train"]),
            prepared.trained.tolist(),
            config,
            num_patches=prepared.manifest.num_patches,
            below=spec.sample_below,
            init=init,
        )
        centroids, sampled, population = result_of(call)
        stage.summary = (
            f"k-means of {sampled:,} of {population:,} patches into {config.model.num_clusters} "
            f"on {centroids.device}, mean distance {centroids.objective:.3f}"
        )


def sample_patches(
    folder: str,
    units: Sequence[Unit],
    labels: Sequence[int],
    *,
    sample_size: int,
    seed: int,
    num_patches: int,
    below: int,
    access: Access = ACCESS,
) -> PatchSample:
    """Bottom-k sample, k = sample_size, of the cached patch features of some classes.

    The result does not depend on the number of workers nor on the order of the units. Memory is
    bounded by the sample: of hashes, which are gathered first, the smallest are kept, and features
    are read of the chosen patches alone. The cache holds patches whose hash lies under `below`.
    """
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
        rows.append(_patch_rows(content, flat, num_patches, seed, below))
        names += [
            f"{content.keys[place // num_patches]}/{place % num_patches:04d}" for place in flat
        ]
    features = np.concatenate(rows)
    return PatchSample(features[np.argsort(np.array(names), kind="stable")], population)


def _smallest(parts: Sequence[Hashed], size: int) -> Hashed:
    """The patches with the smallest hashes of some, in no order."""
    hashes = np.concatenate([hashes for hashes, _ in parts])
    owners = np.concatenate([owners for _, owners in parts])
    if len(hashes) <= size:
        return hashes, owners
    chosen = np.argpartition(hashes, size - 1)[:size]
    return hashes[chosen], owners[chosen]


def _patch_rows(
    content: UnitFeatures, flat: NDArray[np.int64], num_patches: int, seed: int, below: int
) -> NDArray[np.float16]:
    if content.patches.dim() == 3:
        return content.patches.flatten(0, 1)[flat].numpy()
    # Only the sampled patches are stored, in their order within the unit.
    stored = np.flatnonzero(
        patch_hashes(content.keys, num_patches, seed).ravel() < np.uint64(below)
    )
    return content.patches[np.searchsorted(stored, flat)].numpy()


def fit_start(
    sample: PatchSample, config: ModelConfig, seed: int
) -> tuple[Projection | None, Centroids]:
    """PCA and k-means of the sample, as the configuration asks for them."""
    projection = fit_projection(sample.features, config.projection) if config.projection else None
    embedded = project(sample.features, projection)
    centroids = fit_centroids(
        embedded,
        config.num_clusters,
        seed=seed,
        max_points_per_centroid=config.max_points_per_centroid,
    )
    return projection, centroids


def make_start(
    folder: str,
    units: Sequence[Unit],
    labels: Sequence[int],
    config: RunConfig,
    *,
    num_patches: int,
    below: int,
    init: str | Path,
) -> tuple[Centroids, int, int]:
    """Sample, fit and save the start of a run into the folder or URL `init`.

    Returns its centroids, the patches they are made of, and those that the sample was drawn from.
    The other arguments are those of `sample_patches`.
    """
    sample = sample_patches(
        folder,
        units,
        labels,
        sample_size=config.model.num_clusters * config.model.max_points_per_centroid,
        seed=config.seed,
        num_patches=num_patches,
        below=below,
        access=access_of(config.data),
    )
    projection, centroids = fit_start(sample, config.model, config.seed)
    save_start(init, projection, centroids)
    return centroids, len(sample.features), sample.population


def save_start(folder: str | Path, projection: Projection | None, centroids: Centroids) -> None:
    """Write `centroids.npy` [D_v, D_p] and, with a projection, `projection.npy` [D_p, D_f + 1],
    whose last column is the bias."""
    if projection is not None:
        joined = np.concatenate([projection.weight, projection.bias[:, None]], 1)
        _write_array(join_url(str(folder), "projection.npy"), joined)
    # Last: its presence says that the start is complete.
    _write_array(join_url(str(folder), "centroids.npy"), centroids.vectors)


def load_start(folder: str | Path) -> tuple[Projection | None, NDArray[np.float32]]:
    """What `save_start` wrote; FileNotFoundError if there is none."""
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
