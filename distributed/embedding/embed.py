"""The embedding pass: every image once, class sums reduced exactly; and its files, where there are
many images in parts, so that neither a process nor the driver ever holds all of them."""

import functools
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from distributed.display import Display
from distributed.features.actors import remote_results
from distributed.features.cache import Unit, access_of, read_unit
from distributed.features.extract import patch_features
from distributed.storage import read_bytes, write_bytes
from distributed.train.checkpoint import load_module
from distributed.train.trainer import TrainingJob, build_model
from shards.objects import is_remote, join_url
from vgse.embeddings import ClassSums, add_images, empty_sums
from vgse.errors import UserError
from vgse.files import read_arrays, written_whole
from vgse.images.backbones import Backbone
from vgse.images.image_features import (
    FILE,
    INDEX,
    LISTED,
    SPLITS,
    ImageFeatures,
    PartsIndex,
    feature_arrays,
    part_name,
    read_features,
    read_image_features,
    read_index,
    write_image_features,
    write_index,
)
from vgse.training.model import ClusterHead

FILES = (FILE, "embedded.npz")
_ROWS = ("rows", "assignments", "strongest", "scores")
_SUMS = ("sums", "rests", "counts", "contingency")
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
    """Class sums and images of some units; `parts` can be gone through several times."""

    sums: dict[str, ClassSums]  # split -> sums
    start_sums: dict[str, ClassSums]  # the same at k-means; empty when unknown
    parts: Iterable[EmbeddedImages]
    index: PartsIndex | None = None  # of parts that are files

    @property
    def images(self) -> EmbeddedImages:
        """All images, in memory."""
        return _concatenated(list(self.parts))


@dataclass(frozen=True)
class PartFiles:
    """The images of a run folder or URL that holds them in parts, without keys and features."""

    run: str
    num_parts: int

    def __iter__(self) -> Iterator[EmbeddedImages]:
        for number in range(self.num_parts):
            arrays = _read_part(self.run, _rows_name(number))
            count = len(arrays["labels"])
            blank = ImageFeatures(
                np.zeros((count, 0), np.float16),
                arrays["labels"],
                arrays["split"],
                [""] * count,
                np.zeros((count, 0), np.float16),
            )
            yield _images(blank, arrays)

    def features(self) -> Iterator[ImageFeatures]:
        """The same images as the evaluation takes them."""
        for number in range(self.num_parts):
            yield read_features(*_open_part(self.run, part_name(number)))


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
    num_images = sum(unit.stop - unit.start for unit in units)
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
        images = _concatenated([parts[number] for number in sorted(parts)])
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
        _write_npz(join_url(run, part_name(number)), feature_arrays(_image_features(images)))
        rows = {**_row_arrays(images), "labels": images.labels, "split": _split_of(images)}
        _write_npz(join_url(run, _rows_name(number)), rows)
    return EmbeddedPart(
        number,
        _sparse(embedded.sums),
        _sparse(embedded.start_sums),
        len(images.keys),
        images.sources.count(""),
        images.labels.astype(np.int32),
        _split_of(images),
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
    return Embedded(sums, start_sums, [_concatenated(embedded)])


def _assign(head: ClusterHead, features: Tensor) -> Tensor:
    flat = head(features.flatten(0, 1).to(head.centroids.device)).float().cpu()
    return flat.view(*features.shape[:2], -1)  # [n, N, D_v]


def _concatenated(parts: Sequence[EmbeddedImages]) -> EmbeddedImages:
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {}
    for field in fields(EmbeddedImages):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], list):
            columns[field.name] = [value for part in values for value in part]
        else:
            columns[field.name] = None if values[0] is None else np.concatenate(values)
    return EmbeddedImages(**columns)


def save_embedded(folder: Path, embedded: Embedded) -> tuple[str, ...]:
    """Write class sums and images, and return the files: image_features.npz, for users, and
    embedded.npz with all else, for later stages; of parts, which are there, an index."""
    arrays: dict[str, NDArray[Any]] = {}
    if embedded.index is not None:
        write_index(folder, embedded.index)
    else:
        images = embedded.images
        write_image_features(folder, _image_features(images))
        arrays |= _row_arrays(images)
    for prefix, sums in (("sums", embedded.sums), ("start_sums", embedded.start_sums)):
        for split, of_split in sums.items():
            for part in _SUMS:
                arrays[f"{prefix}.{split}.{part}"] = getattr(of_split, part)
    with written_whole(folder / FILES[1]) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # large, and hardly compressible
    return FILES if embedded.index is None else (INDEX, FILES[1])


def load_embedded(folder: Path, run: str | None = None) -> Embedded:
    """What `save_embedded` wrote; parts are read from the URL `run` where `folder` has none."""
    arrays = read_arrays(folder / FILES[1])
    parts: Iterable[EmbeddedImages]
    index = read_index(folder)
    if index is not None:
        parts = PartFiles(run or str(folder), index.num_parts)
    else:
        parts = [_images(read_image_features(folder), arrays)]

    sums, start_sums = (
        {
            split: ClassSums(*(_sums_of(arrays, f"{prefix}.{split}", part) for part in _SUMS))
            for split in SPLITS
            if f"{prefix}.{split}.sums" in arrays
        }
        for prefix in ("sums", "start_sums")
    )
    return Embedded(sums, start_sums, parts, index)


def _sums_of(arrays: dict[str, NDArray[Any]], prefix: str, part: str) -> NDArray[Any]:
    if part == "rests" and f"{prefix}.rests" not in arrays:  # files of earlier versions
        return np.zeros_like(arrays[f"{prefix}.sums"])
    return arrays[f"{prefix}.{part}"]


def _image_features(images: EmbeddedImages) -> ImageFeatures:
    return ImageFeatures(
        features=images.features,
        labels=images.labels,
        split=_split_of(images),
        keys=images.keys,
        assignments=images.assignments.astype(np.float16),
        sources=images.sources,
    )


def _split_of(images: EmbeddedImages) -> NDArray[np.uint8]:
    return np.array([SPLITS.index(name) for name in images.splits], np.uint8)


def _row_arrays(images: EmbeddedImages) -> dict[str, NDArray[Any]]:
    """What image_features.npz, or a part of it, does not hold of the images."""
    files, codes = np.unique(np.array(images.shards, np.str_), return_inverse=True)
    arrays: dict[str, NDArray[Any]] = {"shard_files": files, "shards": codes.astype(np.int32)}
    arrays |= {name: getattr(images, name) for name in _ROWS}
    if images.start_assignments is not None:
        arrays["start_assignments"] = images.start_assignments
    return arrays


def _images(features: ImageFeatures, arrays: dict[str, NDArray[Any]]) -> EmbeddedImages:
    """The images of two files; what else `arrays` hold is left out."""
    return EmbeddedImages(
        keys=features.keys,
        sources=features.sources or [""] * len(features.keys),
        shards=arrays["shard_files"][arrays["shards"]].tolist(),
        splits=[SPLITS[number] for number in features.split],
        labels=features.labels,
        features=features.features,
        start_assignments=arrays.get("start_assignments"),
        **{name: arrays[name] for name in _ROWS},
    )


def _rows_name(number: int) -> str:
    return f"embedded/part-{number:06d}.npz"


def _open_part(run: str, name: str) -> tuple[Path | BinaryIO, str]:
    """A part's file as numpy reads it, and what messages call it."""
    url = join_url(run, name)
    if not is_remote(run):
        return Path(url), url
    try:
        return io.BytesIO(read_bytes(url)), url
    except FileNotFoundError:
        raise UserError(f"{url}: no such file; give a folder that holds it") from None


def _read_part(run: str, name: str) -> dict[str, NDArray[Any]]:
    file, url = _open_part(run, name)
    return read_arrays(file, name=url)


def _write_npz(url: str, arrays: dict[str, NDArray[Any]]) -> None:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    write_bytes(url, stream.getvalue())
