"""The stage that finds the clusters to start from: k-means into `<run>/init`."""

from collections.abc import Sequence
from pathlib import Path

import ray

from distributed.display import Display
from distributed.features.actors import result_of
from distributed.features.cache import FeatureSpec, Unit, units_of
from distributed.features.kmeans_init import make_start
from distributed.setup import Prepared
from distributed.storage import absolute, file_sizes, join
from vgse.clusters import Centroids
from vgse.config import RunConfig


def run_start(
    config: RunConfig,
    prepared: Prepared,
    spec: FeatureSpec,
    folder: str | Path,
    run: str | Path,
    gpu: bool,
    display: Display,
) -> None:
    """k-means into `init` of the run folder, a local one or a URL, unless it is there."""
    init = join(absolute(run), "init")
    if "centroids.npy" in file_sizes(init):
        display.line("clusters    there already: init/centroids.npy")
        return
    with display.stage("clusters") as stage:
        task = ray.remote(num_cpus=1, num_gpus=1 if gpu else 0, max_retries=3)(_start_task)
        units = units_of(prepared.manifest, ["train"])
        labels = prepared.trained.tolist()
        centroids, sampled, population = result_of(
            task.remote(
                str(folder),
                units,
                labels,
                config,
                prepared.manifest.num_patches,
                spec.sample_below,
                init,
            )
        )
        stage.summary = (
            f"k-means of {sampled:,} of {population:,} patches into {config.model.num_clusters} "
            f"on {centroids.device}, mean distance {centroids.objective:.3f}"
        )


def _start_task(
    folder: str,
    units: Sequence[Unit],
    labels: list[int],
    config: RunConfig,
    num_patches: int,
    below: int,
    init: str,
) -> tuple[Centroids, int, int]:
    centroids, sample = make_start(
        folder, units, labels, config, num_patches=num_patches, below=below, init=init
    )
    return centroids, len(sample.features), sample.population
