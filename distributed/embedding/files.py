"""What the embedding pass finds, and its files: where there are many images in parts, so that
neither a process nor the driver ever holds all of them."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from distributed.storage import read_bytes, write_bytes
from shards.objects import is_remote, join_url
from vgse.embeddings import ClassSums
from vgse.errors import UserError
from vgse.files import read_arrays, written_whole
from vgse.images.image_features import (
    FILE,
    INDEX,
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

FILES = (FILE, "embedded.npz")
_ROWS = ("rows", "assignments", "strongest", "scores")
_SUMS = ("sums", "rests", "counts", "contingency")


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
        return concatenated(list(self.parts))


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


def concatenated(parts: Sequence[EmbeddedImages]) -> EmbeddedImages:
    """The rows of all parts."""
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


def write_part(run: str, number: int, images: EmbeddedImages) -> None:
    """Write images as a part of a run folder or URL."""
    _write_npz(join_url(run, part_name(number)), feature_arrays(_image_features(images)))
    rows = {**_row_arrays(images), "labels": images.labels, "split": split_of(images)}
    _write_npz(join_url(run, _rows_name(number)), rows)


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
        split=split_of(images),
        keys=images.keys,
        assignments=images.assignments.astype(np.float16),
        sources=images.sources,
    )


def split_of(images: EmbeddedImages) -> NDArray[np.uint8]:
    """[M] the images' splits, into SPLITS."""
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
