"""The embedding pass: every image once, class sums reduced exactly."""

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from distributed.display import Display
from distributed.embedding.files import (
    Embedded,
    EmbeddedImages,
    PartFiles,
    concatenated,
    split_of,
    write_part,
)
from distributed.features.actors import remote_results
from distributed.features.cache import Unit, access_of, read_unit
from distributed.features.extract import patch_features
from distributed.train.checkpoint import load_module
from distributed.train.trainer import TrainingJob, build_model
from vgse.embeddings import ClassSums, add_images, empty_sums
from vgse.images.backbones import Backbone
from vgse.images.image_features import LISTED, SPLITS, PartsIndex
from vgse.training.model import ClusterHead

_UNITS_A_TASK = 4, 16  # at least and at most
_IN_MEMORY = 500e6  # bytes of features that the driver takes and writes into one file
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Encoder:
    """What turns patches into assignments."""

    job: TrainingJob  # where data and feature cache are
    head: ClusterHead
    start: ClusterHead | None = None  # the head as k-means left it, to compare with
    backbone: Backbone | None = None  # None: patch features come from the cache
    device: str = "cpu"


Sparse = dict[str, tuple[NDArray[np.int64], ClassSums]]
"""split -> the classes that were met, and their sums."""


def run_embedding(
    job: TrainingJob,
    checkpoint: str | Path,
    gpu: bool,
    display: Display,
    units: Sequence[Unit],
    *,
    in_memory: float = _IN_MEMORY,
) -> Embedded:
    """Embed every image of some units once, with the model of a checkpoint's folder or URL. More
    than `in_memory` bytes of features are written by the processes into parts of the run folder."""
    model = build_model(job)
    start = build_model(job).head.eval() if model.backbone is None else None
    load_module(checkpoint, "head", model.head)
    if model.backbone is not None:
        load_module(checkpoint, "backbone", model.backbone)
    model.eval()
    gpu = gpu and model.backbone is not None  # a head alone on cached features needs none
    encoder = Encoder(job, model.head, start, model.backbone, "cuda" if gpu else "cpu")
    shared = [ray.put(encoder)]  # in a list: a reference, which processes look up once
    num_images = sum(unit.count for unit in units)
    run = job.run if 2 * job.num_features * num_images > in_memory else None
    size = min(_UNITS_A_TASK[1], max(_UNITS_A_TASK[0], len(units) // 1000))
    groups = [units[i : i + size] for i in range(0, len(units), size)]
    calls = [(shared, group, number, run) for number, group in enumerate(groups)]
    with display.stage("embedding", num_images) as stage:
        results = remote_results(embed_part, calls, job.config.cluster, gpu, stage.say)
        embedded, nameless = collect(results, job.num_classes, run, stage.advance)
        stage.summary = f"{stage.done:,.0f} images, each once"
        if nameless:
            stage.summary += f"; the feature cache knows {nameless:,} of them by their keys alone"
    return embedded


@dataclass(frozen=True)
class EmbeddedPart:
    """What a task sends of its units: sums, and of their images what is not in a part file."""

    number: int
    sums: Sparse
    start_sums: Sparse
    num_images: int
    nameless: int  # images whose path in the data set is not known
    labels: NDArray[np.int32]  # [n]
    split: NDArray[np.uint8]  # [n] into SPLITS
    images: EmbeddedImages | None


def collect(
    results: Iterable[EmbeddedPart],
    num_classes: int,
    run: str | None,
    advance: Callable[[int], object] = lambda images: None,
) -> tuple[Embedded, int]:
    """Add up what tasks send, in the order that it comes; returns the nameless images as well. The
    sums are exact, so no order changes them, and nothing is held but they, and the images without
    a `run` folder with part files."""
    sums: dict[str, ClassSums] = {}
    start_sums: dict[str, ClassSums] = {}
    parts: dict[int, EmbeddedImages] = {}
    listed: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
    nameless = num_parts = num_images = 0
    for part in results:
        for total, sparse in ((sums, part.sums), (start_sums, part.start_sums)):
            for split, (classes, own) in sparse.items():
                if split not in total:
                    total[split] = empty_sums(num_classes, own.sums.shape[1])
                total[split].add(own, classes)
        if part.images is not None:
            parts[part.number] = part.images
        num_parts, num_images = num_parts + 1, num_images + part.num_images
        nameless += part.nameless
        if num_images <= LISTED:
            listed[part.number] = part.labels, part.split
        else:
            listed.clear()
        advance(part.num_images)
    if run is None:
        images = concatenated([parts[number] for number in sorted(parts)])
        return Embedded(sums, start_sums, [images]), nameless
    empty = np.zeros(num_classes, np.int64)
    counts = np.stack([sums[split].counts if split in sums else empty for split in SPLITS])
    columns = [(empty[:0], empty[:0]), *(listed[number] for number in sorted(listed))]
    labels, split_of = (np.concatenate(column) for column in zip(*columns, strict=True))
    index = PartsIndex(num_parts, counts, labels.astype(np.int32), split_of.astype(np.uint8))
    return Embedded(sums, start_sums, PartFiles(run, num_parts), index), nameless


def embed_part(
    encoder: list[Any], units: Sequence[Unit], number: int, run: str | None
) -> EmbeddedPart:
    """Embed some units; their images go into part `number` of a run folder or URL, if given."""
    with _ONE_AT_A_TIME:
        on_device = _encoder(encoder[0])
    return part_of(embed_units(on_device, units), number, run)


def part_of(embedded: Embedded, number: int, run: str | None) -> EmbeddedPart:
    """What is sent of embedded units, once their images are in a part of `run`, if given."""
    images = embedded.images
    if run is not None:
        write_part(run, number, images)
    return EmbeddedPart(
        number,
        _sparse(embedded.sums),
        _sparse(embedded.start_sums),
        len(images.keys),
        images.sources.count(""),
        images.labels.astype(np.int32),
        split_of(images),
        images if run is None else None,
    )


def _sparse(sums: dict[str, ClassSums]) -> Sparse:
    met = {split: np.flatnonzero(own.counts) for split, own in sums.items()}
    return {split: (classes, sums[split].of(classes)) for split, classes in met.items()}


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
        strongest = assignments.numpy().argmax(2)  # of equal ones the first, as `sums` counts
        images = EmbeddedImages(
            keys=content.keys,
            sources=content.sources,
            shards=[unit.shard] * len(labels),
            splits=[unit.split] * len(labels),
            rows=content.rows.numpy(),
            labels=labels,
            features=content.images.numpy(),
            assignments=means.astype(np.float32),
            strongest=strongest.astype(np.int32),
            scores=assignments.numpy().max(2),
            start_assignments=start_means,
        )
        embedded.append(images)
    return Embedded(sums, start_sums, [concatenated(embedded)])


def _assign(head: ClusterHead, features: Tensor) -> Tensor:
    flat = head(features.flatten(0, 1).to(head.centroids.device)).float().cpu()
    return flat.view(*features.shape[:2], -1)  # [n, N, D_v]
