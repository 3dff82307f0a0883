"""The stage that fills the cache with features of the frozen backbone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from distributed.display import Display
from distributed.features.actors import remote_function, results_of
from distributed.features.cache import (
    FeatureSpec,
    Unit,
    access_of,
    cache_folder,
    feature_spec,
    units_of,
)
from distributed.features.extract import compute_unit
from distributed.setup import Prepared
from distributed.storage import absolute, file_sizes
from shards.manifest import SPLITS
from vgse.clusters import hash_threshold
from vgse.config import RunConfig
from vgse.errors import UserError
from vgse.images.devices import resolve_precision


def run_features(
    config: RunConfig,
    prepared: Prepared,
    gpu: bool,
    display: Display,
    splits: Sequence[str] = SPLITS,
) -> tuple[FeatureSpec, str]:
    """Compute what the feature cache lacks of some splits; returns its spec and folder or URL."""
    manifest = prepared.manifest
    device = "cuda" if gpu else "cpu"
    precision = resolve_precision(config.backbone.precision, device)
    spec = feature_spec(config.backbone, precision)
    if config.backbone.train != "none":
        # θ will move: only the sample that starts the clusters is worth computing.
        size = config.model.num_clusters * config.model.max_points_per_centroid
        images = manifest.num_images("train")
        below = hash_threshold(size, images * manifest.num_patches)
        spec = replace(spec, seed=config.seed, sample_below=below)
    folder = cache_folder(prepared.cache, manifest, spec)
    units = units_of(manifest, splits)
    there = file_sizes(folder)
    missing = missing_units(units, there)
    total = sum(unit.stop - unit.start for unit in units)
    with (
        display.stage("features", sum(u.stop - u.start for u in missing)) as stage,
        remote_function(compute_unit, config.cluster, gpu, len(missing)) as task,
    ):
        url, access = absolute(manifest.url), access_of(config.data)
        calls = (
            (task, (url, unit, spec, folder, device, access, unit.damage in there))
            for unit in missing
        )
        damaged: list[str] = []
        for count, broken in results_of(calls, limit=64):
            damaged += broken
            stage.advance(count, f"images by {config.backbone.name}")
        if len(damaged) > config.data.max_damaged * total:
            raise UserError(
                f"{manifest.url}: {len(damaged)} of {total} images are damaged, such as "
                f"{damaged[0]}; more than data.max_damaged={config.data.max_damaged} allows: "
                "run python -m shards check, then pack again"
            )
        state = "from the cache" if not missing else f"{precision} on {device}"
        skipped = f", {len(damaged)} damaged ones skipped" if damaged else ""
        stage.summary = f"{total:,} images, {config.backbone.name}, {state}{skipped}"
    return spec, folder


def missing_units(units: Sequence[Unit], there: Mapping[str, int]) -> list[Unit]:
    """Units to compute, given the sizes of the cache's files: also those with damaged images, which
    count against the limit every time, and whose shards may have been mended since."""
    return [unit for unit in units if unit.file not in there or there.get(unit.damage)]
