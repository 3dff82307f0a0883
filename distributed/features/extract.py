"""The stage that fills the cache: pictures of the shards through the frozen backbone."""

import functools
import json
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distributed.display import Display
from distributed.features import cache
from distributed.features.actors import remote_results
from distributed.features.cache import FeatureSpec, Unit, access_of, feature_spec, units_of
from distributed.features.sample import PatchSample, SamplePart, Sampling, sample_of_units
from distributed.gpus import gpu_precision
from distributed.requirements import check_requirements
from distributed.setup import Prepared
from distributed.storage import absolute, file_sizes, write_bytes
from distributed.train.prefetch import to_device
from shards.manifest import SPLITS, Manifest, load_labels, load_manifest
from shards.objects import ACCESS, Access, join_url
from shards.samples import DamagedImage, Sample, decode_sample, read_raw
from vgse.clusters import hash_threshold, patch_hashes
from vgse.config import RunConfig
from vgse.errors import UserError
from vgse.images.backbones import Backbone, build_backbone
from vgse.images.devices import (
    Passes,
    autocast,
    cpu_precision,
    freed_memory_kept,
    memory_errors_in_one_line,
)
from vgse.images.patches import cut_patches_opencv

# Larger gains nothing on a CPU: 32 images of 9 patches, and whole pictures.
_PATCHES_A_PASS, _PICTURES_A_PASS = 288, 64
# More fill no GPU better: 8,192 pictures of 64 pixels, 668 of 224. A pass ends with its unit.
_GPU_PIXELS = 1 << 25
_ONE_PASS = threading.Lock()  # the threads of a process share its GPU
_manifest = functools.lru_cache(maxsize=4)(functools.partial(load_manifest, check_files=False))
_UNITS_A_CALL = 4  # at most, of many
_ONE_AT_A_TIME = threading.Lock()  # to load what all threads of a process then use


def run_features(
    config: RunConfig,
    prepared: Prepared,
    gpu: bool,
    display: Display,
    splits: Sequence[str] = SPLITS,
    sample: PatchSample | None = None,
) -> tuple[FeatureSpec, str]:
    """Compute what the feature cache lacks of some splits; returns its spec and folder or URL. What
    the units that are computed have of a `sample` is added to it."""
    manifest = prepared.manifest
    device = "cuda" if gpu else "cpu"
    format_of = gpu_precision if gpu else cpu_precision
    spec = feature_spec(config.backbone, format_of(config.backbone.precision))
    if config.backbone.train != "none":
        # θ will move: only the sample that starts the clusters is worth computing.
        size = config.model.num_clusters * config.model.max_points_per_centroid
        # Those that were packed as such: the same sample for all roles.
        images = int(manifest.shards_of("train").counts.sum())
        below = hash_threshold(size, images * manifest.num_patches)
        spec = replace(spec, seed=config.seed, sample_below=below)
    if sample is not None:
        sample.sampling = replace(sample.sampling, stored=spec.sample_below)
    folder = cache.cache_folder(prepared.cache, manifest, spec)
    units = list({unit.file: unit.whole for unit in units_of(manifest, splits)}.values())
    of_training = {unit.file: unit for unit in units_of(manifest, ["train"])}
    present = file_sizes(folder)
    if not present and spec.weights != "none":  # whose earlier features are of several networks
        earlier = cache.earlier_cache_folder(
            prepared.cache, manifest, spec, config.backbone.weights
        )
        if found := file_sizes(earlier):
            folder, present = earlier, found
    missing = missing_units(units, present)
    total, lacking = (sum(unit.stop - unit.start for unit in some) for some in (units, missing))
    url, access = absolute(manifest.url), access_of(config.data)
    sampling = None if sample is None else sample.sampling
    size = max(1, min(_UNITS_A_CALL, len(missing) // 1000))
    groups = [missing[i : i + size] for i in range(0, len(missing), size)]
    calls = [
        (
            *(url, group, spec, folder, device, access, _listed(group, present), sampling),
            [of_training[unit.file] for unit in group if unit.file in of_training],
        )
        for group in groups
    ]
    damaged: list[str] = []
    with display.stage("features", lacking) as stage:
        results = remote_results(compute_units, calls, config.cluster, gpu, stage.say)
        for count, keys, part, own in results:
            damaged += keys
            if sample is not None and part is not None:
                sample.add(part, own)
            stage.advance(count, f"images by {config.backbone.name}")
        if len(damaged) > config.data.max_damaged * total:
            raise UserError(
                f"{manifest.url}: {len(damaged)} of {total} images are damaged, such as "
                f"{damaged[0]}; more than data.max_damaged={config.data.max_damaged} allows: "
                "run python -m shards check, then pack again"
            )
        if damaged:
            left = replace(manifest, class_counts=counts_left(manifest, folder, access))
            check_requirements(config, replace(prepared, manifest=left))
        state = "from the cache" if not missing else f"{spec.precision} on {device}"
        skipped = f", {len(damaged)} damaged ones skipped" if damaged else ""
        stage.summary = f"{total:,} images, {config.backbone.name}, {state}{skipped}"
    return spec, folder


def counts_left(manifest: Manifest, folder: str, access: Access) -> dict[str, dict[str, int]]:
    """Images of each class by split without the damaged ones, which the cache lacks."""
    counts = {split: dict(of_split) for split, of_split in manifest.class_counts.items()}
    labels, present = load_labels(manifest), file_sizes(folder)
    ends = np.cumsum(manifest.shards.counts)
    first = {
        shard.file: end - shard.count for shard, end in zip(manifest.shards, ends, strict=True)
    }
    for unit in units_of(manifest, SPLITS):
        if present.get(unit.damage) and unit.file in present:
            rows = np.arange(unit.start, unit.stop)
            lost = np.setdiff1d(rows, cache.read_unit(folder, unit.whole, access).rows.numpy())
            for label in labels[first[unit.shard] + lost[unit.holds(lost)]]:
                counts[unit.split][manifest.class_names[label]] -= 1
    return counts


def _listed(units: Sequence[Unit], present: Mapping[str, int]) -> list[str]:
    return [unit.damage for unit in units if unit.damage in present]


def missing_units(units: Sequence[Unit], present: Mapping[str, int]) -> list[Unit]:
    """Units to compute, given the sizes of the cache's files: also those with damaged images,
    whose shards may have been mended since."""
    return [unit for unit in units if unit.file not in present or present.get(unit.damage)]


def compute_units(
    url: str,
    units: Sequence[Unit],
    spec: FeatureSpec,
    folder: str,
    device: str,
    access: Access,
    again: Collection[str],
    sampling: Sampling | None,
    train: Sequence[Unit],
) -> tuple[int, list[str], SamplePart | None, Sequence[Unit]]:
    """Compute some units; returns their images, the keys of damaged ones, and what their training
    images, the units `train`, have of the sample, with these units."""
    count, damaged = 0, list[str]()
    for unit in units:
        images, keys = compute_unit(url, unit, spec, folder, device, access, unit.damage in again)
        count, damaged = count + images, damaged + keys
    if sampling is None or not train:
        return count, damaged, None, []
    return count, damaged, *sample_of_units(folder, train, sampling, access)


@freed_memory_kept()
def compute_unit(
    url: str,
    unit: Unit,
    spec: FeatureSpec,
    folder: str,
    device: str,
    access: Access = ACCESS,
    again: bool = False,
) -> tuple[int, list[str]]:
    """Compute and write one unit's file; returns its images and the keys of damaged ones, which
    a file beside it lists. `again` says that there may be such a list already."""
    manifest = _manifest(url)
    samples, damaged = read_samples(manifest, unit.shard, unit.start, unit.stop, access)
    with _ONE_AT_A_TIME:
        backbone = load_backbone(spec, device)
    keys = [sample.key for sample in samples]
    chosen = np.ones((len(keys), manifest.num_patches), bool)
    if spec.seed is not None:
        chosen = patch_hashes(keys, manifest.num_patches, spec.seed) < np.uint64(spec.sample_below)
    features = functools.partial(_features, backbone, spec, device)
    cut = (
        cut_patches_opencv(sample.image, sample.boxes[mask], spec.patch_size)
        for sample, mask in zip(samples, chosen, strict=True)
        if mask.any()
    )
    patches = features(cut, spec.patch_size, _PATCHES_A_PASS)
    if spec.seed is None:
        patches = patches.view(*chosen.shape, backbone.num_features)
    pictures = (whole_picture(sample.image, spec.image_size)[None] for sample in samples)
    tensors = {
        "labels": torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        "rows": torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        "images": features(pictures, spec.image_size, _PICTURES_A_PASS),
        "patches": patches,
    }
    # Others' texts, and arrays of strings are as wide as their longest.
    sources = [s.source if len(s.source) <= 1024 else "" for s in samples]
    names = {"keys": json.dumps(keys), "sources": json.dumps(sources)}
    if damaged or again:
        write_bytes(join_url(folder, unit.damage), json.dumps(damaged).encode() if damaged else b"")
    cache.write_unit(folder, unit, tensors, names, access)
    return unit.stop - unit.start, damaged


@freed_memory_kept()
def patch_features(
    url: str,
    unit: Unit,
    spec: FeatureSpec,
    backbone: Backbone,
    device: str,
    access: Access = ACCESS,
) -> Tensor:
    """Features of all patches of a unit from its pixels, float32 [n, N, D_f]."""
    manifest = _manifest(url)
    samples, _ = read_samples(manifest, unit.shard, unit.start, unit.stop, access)
    inside = unit.holds(np.array([sample.index for sample in samples], np.int64))
    samples = [sample for sample, own in zip(samples, inside, strict=True) if own]
    side = spec.patch_size
    patches = (cut_patches_opencv(sample.image, sample.boxes, side) for sample in samples)
    flat = _features(backbone, spec, device, patches, side, _PATCHES_A_PASS)
    return flat.view(len(samples), manifest.num_patches, backbone.num_features).float()


def read_samples(
    manifest: Manifest, file: str, start: int, stop: int, access: Access
) -> tuple[list[Sample], list[str]]:
    """Samples start to stop - 1 of a shard, and the keys of those that cannot be decoded."""
    shard = manifest.shards.find(file)
    samples, damaged = [], []
    for raw in read_raw(manifest, shard, start=start, stop=stop, access=access):
        try:
            samples.append(decode_sample(raw, manifest))
        except DamagedImage:
            damaged.append(raw.key)
    return samples, damaged


def whole_picture(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture as a square: uint8 [H, W, 3] -> [size, size, 3]."""
    how = cv2.INTER_AREA if min(image.shape[:2]) > size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=how)


@functools.lru_cache(maxsize=1)
def load_backbone(spec: FeatureSpec, device: str) -> Backbone:
    """The frozen backbone of a spec."""
    return build_backbone(spec.name, spec.weights).to(device)


def _features(
    backbone: Backbone,
    spec: FeatureSpec,
    device: str,
    groups: Iterable[NDArray[np.uint8]],
    side: int,
    least: int,
) -> Tensor:
    """float16 [n, D_f] of groups of pictures [m, side, side, 3], several groups a pass: on a CPU
    as soon as there are `least` pictures, on a GPU as many as fill it."""
    passes = None
    if device.startswith("cuda"):
        passes = _gpu_passes(spec, side, device)
        least = passes.most
    features = [torch.empty(0, backbone.num_features, dtype=torch.float16)]

    def forward(pictures: Tensor) -> Tensor:
        moved = to_device(pictures, torch.device(device))
        with torch.inference_mode(), autocast(device, spec.precision):
            return backbone(moved).to("cpu", torch.float16)

    def run_pass() -> None:
        stacked = torch.from_numpy(np.concatenate(waiting)).permute(0, 3, 1, 2)
        with memory_errors_in_one_line(
            f"{spec.name} takes not even one picture of {side} pixels; lower backbone.patch_size "
            "or backbone.image_size, or set cluster.use_gpu to no"
        ):
            features.append(passes.run(forward, stacked) if passes else forward(stacked))
        waiting.clear()

    waiting: list[NDArray[np.uint8]] = []
    for group in groups:
        waiting.append(group)
        if sum(map(len, waiting)) >= least:
            run_pass()
    if waiting:
        run_pass()
    joined = torch.cat(features)
    if not torch.isfinite(joined).all():  # or it would show after the training
        raise UserError(
            f"backbone.weights: {spec.name} gives features that are not finite in float16; take "
            "other weights, or scale its last layer down"
        )
    return joined


@functools.lru_cache(maxsize=4)
def _gpu_passes(spec: FeatureSpec, side: int, device: str) -> Passes:
    """What the threads of a process share of a GPU."""
    return Passes(max(1, _GPU_PIXELS // side**2), lock=_ONE_PASS)
