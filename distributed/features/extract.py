"""Computing what the feature cache holds: pictures of a shard through the frozen backbone."""

import functools
import json
import threading

import cv2
import numpy as np
import torch
from torch import Tensor

from distributed.features.cache import (
    FeatureSpec,
    Unit,
    send_unit,
    unit_path,
    weights_of,
    write_tensors,
)
from distributed.storage import join, write
from distributed.train.prefetch import sent
from shards.manifest import Manifest, load_manifest
from shards.objects import ACCESS, Access
from shards.samples import DamagedImage, Sample, decode_sample, label_index, read_raw
from vgse.clusters import patch_hashes
from vgse.images.backbones import Backbone, build_backbone
from vgse.images.batch_size import pictures_a_pass
from vgse.images.devices import autocast, freed_memory_kept
from vgse.images.patches import cut_patches_opencv

# Larger gains nothing on a CPU: 32 images of 9 patches, and whole pictures.
_PATCHES_A_PASS, _PICTURES_A_PASS = 288, 64
# Sources are others' texts, and arrays of strings are as wide as their longest.
_LONGEST_SOURCE = 1024
_ONE_AT_A_TIME = threading.Lock()
"""Held while something is loaded or tried out that all threads of a process then use."""


@functools.lru_cache(maxsize=1)
def _build(name: str, weights: str, device: str) -> Backbone:
    return build_backbone(name, weights).to(device)


def _backbone(spec: FeatureSpec, device: str) -> Backbone:
    with _ONE_AT_A_TIME:
        return _build(spec.name, weights_of(spec), device)


def _most(backbone: Backbone, side: int, usual: int, spec: FeatureSpec, device: str) -> int:
    """Pictures a pass: what suits a CPU, or what was found to suit a GPU."""
    if not device.startswith("cuda"):
        return usual
    with _ONE_AT_A_TIME:
        return pictures_a_pass(backbone, side, spec.precision, device)


@functools.lru_cache(maxsize=4)
def _manifest(url: str) -> Manifest:
    return load_manifest(url, check_files=False)


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
    """Compute and write one unit's file; returns its images and the keys of damaged ones.

    What is damaged is listed in a file beside it before the unit's own file is there; `again`
    says that there may be such a list.
    """
    manifest = _manifest(url)
    samples, damaged = read_samples(manifest, unit.shard, unit.start, unit.stop, access)
    backbone = _backbone(spec, device)
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
        try:
            samples.append(decode_sample(raw, labels, manifest.num_patches))
        except DamagedImage:
            damaged.append(raw.key)
    return samples, damaged


def _chosen_patches(keys: list[str], num_patches: int, spec: FeatureSpec) -> np.ndarray:
    if spec.seed is None:
        return np.ones((len(keys), num_patches), bool)
    return patch_hashes(keys, num_patches, spec.seed) < np.uint64(spec.sample_below)


def _run(pictures: list[np.ndarray], backbone: Backbone, spec: FeatureSpec, device: str) -> Tensor:
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # [n, 3, P, P]
    with torch.inference_mode(), autocast(device, spec.precision):
        return backbone(sent(stacked, torch.device(device))).to("cpu", torch.float16)


def _patch_features(
    samples: list[Sample], chosen: np.ndarray, backbone: Backbone, spec: FeatureSpec, device: str
) -> Tensor:
    done: list[Tensor] = []
    waiting: list[np.ndarray] = []
    most = _most(backbone, spec.patch_size, _PATCHES_A_PASS, spec, device)
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
    chosen = np.ones((len(samples), manifest.num_patches), bool)
    flat = _patch_features(samples, chosen, backbone, spec, device)
    return flat.view(len(samples), manifest.num_patches, backbone.num_features).float()


def _whole_features(
    samples: list[Sample], backbone: Backbone, spec: FeatureSpec, device: str
) -> Tensor:
    done = []
    most = _most(backbone, spec.image_size, _PICTURES_A_PASS, spec, device)
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
