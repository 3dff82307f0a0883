"""Features of a frozen backbone, computed once, cached as files and read back by mmap.

A unit is a run of at most 256 consecutive images of one shard: the piece of work of one Ray
task, one file of the cache, and one block of the epoch's order. Files appear whole or not at all,
so that any number of runs and trials can share a cache, on a disk or at a URL.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from distributed.run_storage import join, write
from distributed.unit_files import local_unit, send_unit, unit_path, write_tensors
from shards.access import ACCESS, PATIENT, Access
from shards.manifest import Manifest, load_manifest
from shards.stream import Sample, decode, label_index, parse_meta, read_raw
from vgse.backbones import Backbone, build_backbone
from vgse.batch_size import pictures_a_pass
from vgse.clusters import patch_hashes
from vgse.config import BackboneConfig, DataConfig
from vgse.devices import autocast
from vgse.patches import cut_patches_opencv

UNIT = 256
# Larger gains nothing on a CPU: 32 images of 9 patches, and whole pictures.
_PATCHES_A_PASS, _PICTURES_A_PASS = 288, 64
# Sources are others' texts, and arrays of strings are as wide as their longest.
_LONGEST_SOURCE = 1024


@dataclass(frozen=True)
class FeatureSpec:
    """What is computed: all a cache's key depends on, apart from the data."""

    name: str
    weights: str
    patch_size: int
    image_size: int
    precision: str
    seed: int | None = None
    """None: features of all patches. Otherwise only of the sample that starts the clusters."""
    sample_below: int = 2**64 - 1
    """Patches whose hash lies below this are the sample."""


@dataclass(frozen=True)
class Unit:
    """Images start..stop of a shard."""

    shard: str
    split: str
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Name of the unit's file in the cache."""
        return f"{self.shard.removesuffix('.tar')}-{self.start:07d}.safetensors"

    @property
    def damage(self) -> str:
        """Name of the file that lists images which could not be read, if there ever were any."""
        return f"{self.file}.damaged"


@dataclass(frozen=True)
class UnitFeatures:
    """What the cache holds of a unit; tensors are views of the mapped file."""

    keys: list[str]
    labels: Tensor  # int64 [n]
    images: Tensor  # float16 [n, D_f], whole pictures
    patches: Tensor  # float16 [n, N, D_f], or [m, D_f] of the sampled patches
    rows: Tensor  # int64 [n], each image's place in its shard
    sources: list[str]  # [n] paths in the data set, "" where not known


def feature_spec(config: BackboneConfig, precision: str) -> FeatureSpec:
    """The spec of a frozen backbone, all patches."""
    weights = config.weights
    if weights not in ("default", "none"):
        digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:16]
        weights = f"{weights}#{digest}"  # other content is another cache
    return FeatureSpec(config.name, weights, config.patch_size, config.image_size, precision)


def units_of(manifest: Manifest, splits: Sequence[str]) -> list[Unit]:
    """All units of some splits, in the order of the shards' names."""
    return [
        Unit(shard.file, split, start, min(start + UNIT, shard.count))
        for split in splits
        for shard in manifest.shards_of(split)
        for start in range(0, shard.count, UNIT)
    ]


def access_of(config: DataConfig) -> Access:
    """How the configuration wants remote shards to be read."""
    limit = int(config.shard_cache_gb * 1e9) or None
    return Access(retry=PATIENT, cache=config.shard_cache, cache_bytes=limit)


def cache_folder(root: str, manifest: Manifest, spec: FeatureSpec) -> str:
    """The folder or URL of one data set and spec below the cache's root."""
    content = json.dumps([manifest.fingerprint, asdict(spec), UNIT], sort_keys=True)
    return join(root, f"{spec.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}")


@functools.lru_cache(maxsize=1)
def _backbone(name: str, weights: str, device: str) -> Backbone:
    return build_backbone(name, weights).to(device)


@functools.lru_cache(maxsize=4)
def _manifest(url: str) -> Manifest:
    return load_manifest(url, check_files=False)


def weights_of(spec: FeatureSpec) -> str:
    """The weights as `build_backbone` takes them."""
    path, _, _ = spec.weights.rpartition("#")
    return path or spec.weights


def compute_unit(
    url: str,
    unit: Unit,
    spec: FeatureSpec,
    folder: str,
    device: str,
    access: Access = ACCESS,
    again: bool = False,
) -> tuple[int, list[str]]:
    """Compute and write one unit's file; returns its images and the keys of damaged ones.

    What is damaged is listed in a file beside it before the unit's own file is there; `again`
    says that there may be such a list.
    """
    manifest = _manifest(url)
    samples, damaged = read_samples(manifest, unit.shard, unit.start, unit.stop, access)
    backbone = _backbone(spec.name, weights_of(spec), device)
    keys = [sample.key for sample in samples]
    chosen = _chosen_patches(keys, manifest.num_patches, spec)
    tensors = {
        "labels": torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        "rows": torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        "images": _whole_features(samples, backbone, spec, device),
        "patches": _patch_features(samples, chosen, backbone, spec, device),
    }
    if spec.seed is None:
        tensors["patches"] = tensors["patches"].view(
            len(samples), manifest.num_patches, backbone.num_features
        )
    sources = [s.source if len(s.source) <= _LONGEST_SOURCE else "" for s in samples]
    names = {"keys": json.dumps(keys), "sources": json.dumps(sources)}
    if damaged or again:
        write(join(folder, unit.damage), json.dumps(damaged).encode() if damaged else b"")
    write_tensors(unit_path(folder, unit.file, access), tensors, names)
    send_unit(folder, unit.file, access)
    return unit.stop - unit.start, damaged


def read_samples(
    manifest: Manifest, file: str, start: int, stop: int, access: Access
) -> tuple[list[Sample], list[str]]:
    """Samples start to stop - 1 of a shard, and the keys of those that cannot be decoded."""
    shard = next(s for s in manifest.shards if s.file == file)
    labels = label_index(manifest)
    samples, damaged = [], []
    for raw in read_raw(manifest, shard, start=start, stop=stop, access=access):
        meta = parse_meta(raw, labels, manifest.num_patches)
        try:
            image = decode(raw)
        except ValueError:
            damaged.append(raw.key)
            continue
        samples.append(Sample(raw.key, raw.index, image, meta.boxes, meta.label, meta.source))
    return samples, damaged


def _chosen_patches(keys: list[str], num_patches: int, spec: FeatureSpec) -> np.ndarray:
    if spec.seed is None:
        return np.ones((len(keys), num_patches), bool)
    return patch_hashes(keys, num_patches, spec.seed) < np.uint64(spec.sample_below)


def _run(pictures: list[np.ndarray], backbone: Backbone, spec: FeatureSpec, device: str) -> Tensor:
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # [n, 3, P, P]
    with torch.inference_mode(), autocast(device, spec.precision):
        return backbone(stacked.to(device)).to("cpu", torch.float16)


def _patch_features(
    samples: list[Sample], chosen: np.ndarray, backbone: Backbone, spec: FeatureSpec, device: str
) -> Tensor:
    done: list[Tensor] = []
    waiting: list[np.ndarray] = []
    most = _PATCHES_A_PASS
    if device.startswith("cuda"):
        most = pictures_a_pass(backbone, spec.patch_size, spec.precision, device)
    for sample, mask in zip(samples, chosen, strict=True):
        if mask.any():
            waiting += list(cut_patches_opencv(sample.image, sample.boxes[mask], spec.patch_size))
        if len(waiting) >= most:
            done.append(_run(waiting, backbone, spec, device))
            waiting = []
    if waiting:
        done.append(_run(waiting, backbone, spec, device))
    empty = torch.empty(0, backbone.num_features, dtype=torch.float16)
    return torch.cat(done) if done else empty


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
    chosen = np.ones((len(samples), manifest.num_patches), bool)
    flat = _patch_features(samples, chosen, backbone, spec, device)
    return flat.view(len(samples), manifest.num_patches, backbone.num_features).float()


def _whole_features(
    samples: list[Sample], backbone: Backbone, spec: FeatureSpec, device: str
) -> Tensor:
    done = []
    most = _PICTURES_A_PASS
    if device.startswith("cuda"):
        most = pictures_a_pass(backbone, spec.image_size, spec.precision, device)
    for start in range(0, len(samples), most):
        pictures = [whole_picture(s.image, spec.image_size) for s in samples[start : start + most]]
        done.append(_run(pictures, backbone, spec, device))
    empty = torch.empty(0, backbone.num_features, dtype=torch.float16)
    return torch.cat(done) if done else empty


def whole_picture(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture as a square: uint8 [H, W, 3] -> [size, size, 3]."""
    shrinks = min(image.shape[:2]) > size
    return cv2.resize(
        image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def read_unit(folder: str | Path, unit: Unit, access: Access = ACCESS) -> UnitFeatures:
    """A unit of the cache, mapped rather than read; of a cache at a URL a copy on this node is.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = local_unit(str(folder), unit.file, access)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            keys = json.loads(metadata["keys"])
            # Files of earlier versions hold none.
            sources = json.loads(metadata.get("sources", "null")) or [""] * len(keys)
            names = ("labels", "images", "patches", "rows")
            labels, images, patches, rows = (file.get_tensor(name) for name in names)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: missing from the feature cache; run again to compute it"
        ) from None
    except Exception as error:
        raise ValueError(f"{path}: damaged ({error}); delete the file and run again") from None
    return UnitFeatures(keys, labels, images, patches, rows, sources)
