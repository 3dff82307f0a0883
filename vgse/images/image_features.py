"""Whole-image features of a run's images: in one file, or in parts where there are too many."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vgse.clusters import hash_threshold, patch_hashes
from vgse.errors import UserError
from vgse.files import read_arrays, write_arrays
from vgse.formats import Indices

SPLITS = ("train", "test_seen", "test_unseen")
FILE = "image_features.npz"
INDEX = "image_parts.npz"
FOLDER = "image_features"
LISTED = 10_000_000  # images at most whose labels the index holds
_SEED = 0  # of the sample


@dataclass(frozen=True)
class ImageFeatures:
    """One row an image of a run."""

    features: NDArray[np.float16]  # [M, D_f] of whole images
    labels: Indices  # [M] into class_names
    split: NDArray[np.uint8]  # [M] into SPLITS
    keys: list[str]
    assignments: NDArray[np.float16]  # [M, D_v] mean over an image's patches
    sources: list[str] = field(default_factory=list)
    """[M] paths in the data set, "" where not known; or none at all."""


@dataclass(frozen=True)
class PartsIndex:
    """What the images of all parts are, together."""

    num_parts: int
    counts: NDArray[np.int64]  # [3, C] images of each class in the SPLITS
    labels: NDArray[np.int32]  # [M], or [0] of more than LISTED images
    split: NDArray[np.uint8]  # the same

    @property
    def num_images(self) -> int:
        """M."""
        return int(self.counts.sum())


def feature_arrays(images: ImageFeatures) -> dict[str, NDArray[Any]]:
    """The arrays of image_features.npz, and of a part."""
    return {
        "features": np.asarray(images.features, np.float16),
        "labels": np.asarray(images.labels, np.int64),
        "split": np.asarray(images.split, np.uint8),
        "split_names": np.array(SPLITS),
        "keys": np.array(images.keys, np.str_),
        "assignments": np.asarray(images.assignments, np.float16),
        "sources": np.array(images.sources, np.str_),
    }


def write_image_features(run: Path, images: ImageFeatures) -> None:
    """Writes image_features.npz."""
    write_arrays(run / FILE, feature_arrays(images))


def part_name(number: int) -> str:
    """Where the run folder has a part."""
    return f"{FOLDER}/part-{number:06d}.npz"


def read_features(file: Path | BinaryIO, name: str = "") -> ImageFeatures:
    """Image features from image_features.npz or a part; `name` is that of an open file."""
    needed = ("features", "labels", "split", "split_names", "keys", "assignments")
    arrays = read_arrays(file, *needed, also=["sources"], name=name)
    names = [str(name) for name in arrays.pop("split_names")]
    unknown = sorted(set(names) - set(SPLITS))
    if unknown:
        raise UserError(
            f"{name or file}: split {', '.join(unknown)} is none of {', '.join(SPLITS)}"
        )
    arrays["split"] = np.array([SPLITS.index(name) for name in names], np.uint8)[arrays["split"]]
    keys = [str(key) for key in arrays.pop("keys")]
    # Files of earlier versions hold no sources.
    sources = [str(source) for source in arrays.pop("sources", ())]
    return ImageFeatures(**arrays, keys=keys, sources=sources)


def write_index(run: Path, index: PartsIndex) -> None:
    """Writes image_parts.npz."""
    write_arrays(run / INDEX, vars(index))


def read_index(run: Path) -> PartsIndex | None:
    """What `write_index` wrote; None for a run folder without parts."""
    if not (run / INDEX).is_file():
        return None
    arrays = read_arrays(run / INDEX, "num_parts", "counts", "labels", "split")
    return PartsIndex(int(arrays.pop("num_parts")), **arrays)


def image_parts(run: Path) -> Iterator[ImageFeatures]:
    """All images of a run folder on this machine, a part at a time."""
    index = read_index(run)
    if index is None:
        yield read_features(run / FILE)
        return
    for number in range(index.num_parts):
        yield read_features(run / part_name(number))


def read_image_features(run: Path) -> ImageFeatures:
    """All images of a run folder, in memory."""
    return joined(image_parts(run))


def image_labels(run: Path) -> tuple[Indices, NDArray[np.uint8]]:
    """Labels and splits [M] of all images, from each file in turn where no index lists them."""
    index = read_index(run)
    if index is not None and len(index.labels) == index.num_images:
        return index.labels.astype(np.int64), index.split
    files = [FILE] if index is None else map(part_name, range(index.num_parts))
    columns = []
    for file in files:
        arrays = read_arrays(run / file, "labels", "split", "split_names")
        names = [SPLITS.index(str(name)) for name in arrays["split_names"]]
        split = np.array(names, np.uint8)[arrays["split"]]
        columns.append((arrays["labels"].astype(np.int32), split))
    labels, splits = (np.concatenate(column) for column in zip(*columns, strict=True))
    return labels.astype(np.int64), splits


def joined(parts: Iterable[ImageFeatures]) -> ImageFeatures:
    """The rows of all parts."""
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    for part in parts:
        for name, value in vars(part).items():
            columns[name].append(value)
    if len(columns["keys"]) == 1:
        return ImageFeatures(**{name: values[0] for name, values in columns.items()})
    rows: dict[str, Any] = {
        name: [row for part in values for row in part]
        if isinstance(values[0], list)
        else np.concatenate(values)
        for name, values in columns.items()
    }
    return ImageFeatures(**rows)


@dataclass(frozen=True)
class _Candidates:
    group: Indices  # [n] class and split
    hashes: NDArray[np.uint64]  # [n]
    images: ImageFeatures  # features, labels and split

    def of(self, rows: Indices) -> "_Candidates":
        """Some of them."""
        return _Candidates(self.group[rows], self.hashes[rows], _rows(self.images, rows))


def _keep_smallest(held: list[_Candidates], most: int) -> None:
    """Of each group leaves those with the smallest hashes, in the order that they had, a part at a
    time: all features are never in memory twice."""
    group = np.concatenate([candidates.group for candidates in held])
    order = np.lexsort((np.concatenate([candidates.hashes for candidates in held]), group))
    ordered = group[order]
    rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    kept = np.zeros(len(group), bool)
    kept[order[rank < most]] = True
    ends = np.cumsum([len(candidates.group) for candidates in held])
    for number, rows in enumerate(np.split(kept, ends[:-1])):
        held[number] = held[number].of(np.flatnonzero(rows))


def sample_images(
    parts: Iterable[ImageFeatures], counts: NDArray[np.integer], most: int
) -> ImageFeatures:
    """Features, labels and split of about `most` images: of each class and split those whose keys
    have the smallest hashes, equally many where there are as many. Their order is that of `parts`,
    whose sizes do not matter; little more than these images are held in memory.

    `counts` [3, C] are the images of each class in the SPLITS.
    """
    each = _each(counts.ravel(), most)
    below = np.array([hash_threshold(each, max(1, int(n))) for n in counts.ravel()], np.uint64)
    held: list[_Candidates] = []
    for part in parts:
        group = part.split.astype(np.int64) * counts.shape[1] + part.labels
        hashes = patch_hashes(part.keys, 1, _SEED)[:, 0]
        chosen = np.flatnonzero(hashes <= below[group])
        held.append(_Candidates(group[chosen], hashes[chosen], _rows(part, chosen)))
        if sum(len(candidates.group) for candidates in held) > 1.25 * most:
            _keep_smallest(held, each)
    _keep_smallest(held, each)
    return joined(candidates.images for candidates in held)


def _each(counts: NDArray[np.integer], most: int) -> int:
    """Images of a group such that no more than `most` are chosen; 2 at least, so that a class can
    lose one to validation."""
    low, high = 2, max(2, int(counts.max(initial=0)))
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(counts, middle).sum() <= most:
            low = middle
        else:
            high = middle - 1
    return low


def _rows(images: ImageFeatures, rows: Indices) -> ImageFeatures:
    labels, split = images.labels[rows], images.split[rows]
    blank = np.empty((len(rows), 0), np.float16)
    return ImageFeatures(images.features[rows], labels, split, [], blank)
