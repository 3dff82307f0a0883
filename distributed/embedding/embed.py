"""The embedding pass: every image once, class sums reduced exactly; and its files."""

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from distributed.display import Display
from distributed.features.actors import remote_results
from distributed.features.cache import Unit, access_of, read_unit
from distributed.features.extract import patch_features
from distributed.train.checkpoint import load_module
from distributed.train.trainer import TrainingJob, build_model
from vgse.embeddings import ClassSums, add_images, empty_sums
from vgse.files import read_arrays, written_whole
from vgse.images.backbones import Backbone
from vgse.run_folder import SPLITS, ImageFeatures, read_image_features, write_image_features
from vgse.training.model import ClusterHead

FILES = ("image_features.npz", "embedded.npz")
_ROWS = ("rows", "assignments", "strongest", "scores")
_SUMS = ("sums", "counts", "contingency")
_UNITS_A_TASK = 4
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Encoder:
    """What turns patches into assignments."""

    job: TrainingJob  # where data and feature cache are
    head: ClusterHead
    start: ClusterHead | None = None  # the head as k-means left it, to compare with
    backbone: Backbone | None = None  # None: patch features come from the cache
    device: str = "cpu"


@dataclass(frozen=True)
class EmbeddedImages:
    """One row an image, in the order of the units."""

    keys: list[str]
    sources: list[str]  # paths in the data set, "" where not known
    shards: list[str]
    splits: list[str]
    rows: NDArray[np.int64]  # [M], place in the shard
    labels: NDArray[np.int64]  # [M]
    features: NDArray[np.float16]  # [M, D_f], of whole pictures
    assignments: NDArray[np.float32]  # a_n, [M, D_v]
    strongest: NDArray[np.int32]  # [M, N], the cluster of each patch
    scores: NDArray[np.float32]  # [M, N], its assignment in 0..1
    start_assignments: NDArray[np.float32] | None  # [M, D_v] at k-means, where known


@dataclass(frozen=True)
class Embedded:
    """Class sums and images of some units."""

    sums: dict[str, ClassSums]  # split -> sums
    start_sums: dict[str, ClassSums]  # the same at k-means; empty when unknown
    images: EmbeddedImages


def run_embedding(
    job: TrainingJob, checkpoint: str | Path, gpu: bool, display: Display, units: Sequence[Unit]
) -> Embedded:
    """Embed every image of some units once, with the model of a checkpoint's folder or URL."""
    model = build_model(job)
    start = build_model(job).head.eval() if model.backbone is None else None
    load_module(checkpoint, "head", model.head)
    if model.backbone is not None:
        load_module(checkpoint, "backbone", model.backbone)
    model.eval()
    gpu = gpu and model.backbone is not None  # a head alone on cached features needs none
    encoder = Encoder(job, model.head, start, model.backbone, "cuda" if gpu else "cpu")
    shared = [ray.put(encoder)]  # in a list: a reference, which processes look up once
    groups = [units[i : i + _UNITS_A_TASK] for i in range(0, len(units), _UNITS_A_TASK)]
    calls = [(shared, group, number) for number, group in enumerate(groups)]
    parts: dict[int, Embedded] = {}
    with display.stage("embedding", sum(u.stop - u.start for u in units)) as stage:
        for number, part in remote_results(_embed_numbered, calls, job.config.cluster, gpu):
            parts[number] = part
            stage.advance(len(part.images.keys))
        ordered = [parts[number] for number in range(len(groups))]
        images = _concatenated([part.images for part in ordered])
        stage.summary = f"{len(images.keys):,} images, each once"
        if nameless := images.sources.count(""):
            stage.summary += f"; the feature cache knows {nameless:,} of them by their keys alone"
    sums, start_sums = [p.sums for p in ordered], [p.start_sums for p in ordered]
    return Embedded(_added(sums), _added(start_sums), images)


def _added(parts: Sequence[dict[str, ClassSums]]) -> dict[str, ClassSums]:
    total: dict[str, ClassSums] = {}
    for part in parts:
        for split, own in part.items():
            total[split] = total[split] + own if split in total else own
    return total


def _embed_numbered(encoder: list[Any], units: Sequence[Unit], number: int) -> tuple[int, Embedded]:
    with _ONE_AT_A_TIME:
        on_device = _encoder(encoder[0])
    return number, embed_units(on_device, units)


@functools.lru_cache(maxsize=1)
def _encoder(reference: Any) -> Encoder:
    """The encoder on its device, which the driver's machine need not have."""
    encoder: Encoder = ray.get(reference)
    for module in (encoder.head, encoder.start, encoder.backbone):
        if module is not None:
            module.to(encoder.device)
    return encoder


@torch.inference_mode()
def embed_units(encoder: Encoder, units: Sequence[Unit]) -> Embedded:
    """Embed all images of some units."""
    job, backbone, device = encoder.job, encoder.backbone, encoder.device
    access = access_of(job.config.data)
    embedded = []
    sums: dict[str, ClassSums] = {}
    start_sums: dict[str, ClassSums] = {}
    size = job.num_classes, len(encoder.head.centroids)
    for unit in units:
        content = read_unit(job.folder, unit, access)
        labels = content.labels.numpy()
        if backbone is None:
            features = content.patches.float()  # [n, N, D_f]
        else:
            features = patch_features(job.url, unit, job.spec, backbone, device, access)
        assignments, start_means = _assign(encoder.head, features), None
        own = sums.setdefault(unit.split, empty_sums(*size))
        means = add_images(own, assignments.numpy(), labels)
        if encoder.start is not None:
            own = start_sums.setdefault(unit.split, empty_sums(*size))
            started = _assign(encoder.start, features).numpy()
            start_means = add_images(own, started, labels).astype(np.float32)
        scores, strongest = assignments.max(2)
        images = EmbeddedImages(
            keys=content.keys,
            sources=content.sources,
            shards=[unit.shard] * len(labels),
            splits=[unit.split] * len(labels),
            rows=content.rows.numpy(),
            labels=labels,
            features=content.images.numpy(),
            assignments=means.astype(np.float32),
            strongest=strongest.numpy().astype(np.int32),
            scores=scores.numpy(),
            start_assignments=start_means,
        )
        embedded.append(images)
    return Embedded(sums, start_sums, _concatenated(embedded))


def _assign(head: ClusterHead, features: Tensor) -> Tensor:
    flat = head(features.flatten(0, 1).to(head.centroids.device)).float().cpu()
    return flat.view(*features.shape[:2], -1)  # [n, N, D_v]


def _concatenated(parts: Sequence[EmbeddedImages]) -> EmbeddedImages:
    columns: dict[str, Any] = {}
    for field in fields(EmbeddedImages):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], list):
            columns[field.name] = [value for part in values for value in part]
        else:
            columns[field.name] = None if values[0] is None else np.concatenate(values)
    return EmbeddedImages(**columns)


def save_embedded(folder: Path, embedded: Embedded) -> None:
    """Write image_features.npz, for users, and embedded.npz with all else, for later stages."""
    images = embedded.images
    write_image_features(
        folder,
        ImageFeatures(
            features=images.features,
            labels=images.labels,
            split=np.array([SPLITS.index(name) for name in images.splits], np.uint8),
            keys=images.keys,
            assignments=images.assignments.astype(np.float16),
            sources=images.sources,
        ),
    )
    files, codes = np.unique(np.array(images.shards), return_inverse=True)
    arrays: dict[str, NDArray[Any]] = {"shard_files": files, "shards": codes.astype(np.int32)}
    arrays |= {name: getattr(images, name) for name in _ROWS}
    if images.start_assignments is not None:
        arrays["start_assignments"] = images.start_assignments
    for prefix, sums in (("sums", embedded.sums), ("start_sums", embedded.start_sums)):
        for split, of_split in sums.items():
            for part in _SUMS:
                arrays[f"{prefix}.{split}.{part}"] = getattr(of_split, part)
    with written_whole(folder / "embedded.npz") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # large, and hardly compressible


def load_embedded(folder: Path) -> Embedded:
    """What `save_embedded` wrote."""
    features = read_image_features(folder)
    arrays = read_arrays(folder / "embedded.npz")
    images = EmbeddedImages(
        keys=features.keys,
        sources=features.sources or [""] * len(features.keys),
        shards=arrays["shard_files"][arrays["shards"]].tolist(),
        splits=[SPLITS[number] for number in features.split],
        labels=features.labels,
        features=features.features,
        start_assignments=arrays.get("start_assignments"),
        **{name: arrays[name] for name in _ROWS},
    )

    sums, start_sums = (
        {
            split: ClassSums(*(arrays[f"{prefix}.{split}.{part}"] for part in _SUMS))
            for split in SPLITS
            if f"{prefix}.{split}.sums" in arrays
        }
        for prefix in ("sums", "start_sums")
    )
    return Embedded(sums, start_sums, images)
