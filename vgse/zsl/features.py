"""Image features as zero-shot models get them: unit length, centred, in their principal axes, where
XᵀX is diagonal: one eigendecomposition a split serves every ridge of every row of the table."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.data import Features, Indices

_BLOCK = 4096
_NO_VARIANCE = 1e-7


def unit_rows(rows: NDArray[np.floating]) -> Features:
    """`rows` [M, D] as float32 at Euclidean length 1; a row of zeros stays."""
    rows = np.asarray(rows, np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)


@dataclass(frozen=True)
class Axes:
    """Centre and principal axes of the training images' unit-length features."""

    mean: Features  # [D_f]
    rotation: Features  # [D_f, D], D ≤ D_f: axes without variance are left out

    def transform(self, features: Features, images: Indices | None = None) -> Features:
        """[M, D]: rows of `features` [M, D_f], or those of some images, at unit length, minus the
        mean, in the axes."""
        count, start = len(features if images is None else images), 0
        out = np.empty((count, self.rotation.shape[1]), np.float32)
        for block in _blocks(features, images):
            out[start : start + len(block)] = (unit_rows(block) - self.mean) @ self.rotation
            start += len(block)
        return out


def _blocks(features: Features, images: Indices | None) -> Iterator[Features]:
    """Rows of `features`, all or of some images, never all at once."""
    count = len(features if images is None else images)
    for start in range(0, count, _BLOCK):
        chosen = slice(start, start + _BLOCK)
        yield features[chosen if images is None else images[chosen]]


def principal_axes(features: Features, images: Indices | None = None) -> Axes:
    """The axes of the training images, rows of `features` [M, D_f], the largest variance first."""
    size, count = features.shape[1], len(features if images is None else images)
    if count < size:
        rows = unit_rows(features if images is None else features[images])
        mean = rows.mean(0, dtype=np.float64)
        centred = rows - mean
        values, left = np.linalg.eigh(centred @ centred.T / len(rows))
        varies = values > _NO_VARIANCE * max(values[-1], 1e-30)
        values, left = values[varies][::-1], left[:, varies][:, ::-1]
        vectors = centred.T @ (left / np.sqrt(len(rows) * values))
        return Axes(mean.astype(np.float32), np.ascontiguousarray(vectors, np.float32))
    total, gram = np.zeros(size), np.zeros((size, size))
    for block in map(unit_rows, _blocks(features, images)):
        total += block.sum(0, dtype=np.float64)
        gram += block.T @ block
    mean = total / count
    values, vectors = np.linalg.eigh(gram / count - np.outer(mean, mean))
    varies = values > _NO_VARIANCE * max(values[-1], 1e-30)
    rotation = np.ascontiguousarray(vectors[:, varies][:, ::-1], np.float32)
    return Axes(mean.astype(np.float32), rotation)


def class_sums(features: Features, labels: Indices, num_classes: int) -> NDArray[np.float64]:
    """[C, D] sums of `features` [M, D] over the images of each class."""
    sums = np.zeros((num_classes, features.shape[1]))
    for label in np.unique(labels):
        sums[label] = features[labels == label].sum(0, dtype=np.float64)
    return sums


@dataclass(frozen=True, eq=False)
class Training:
    """What a model learns from, besides class embeddings."""

    features: Features  # [M, D], columns orthogonal to each other
    labels: Indices  # [M] in 0..S-1, the rows of the embeddings
    spectrum: NDArray[np.float64]  # [D] the diagonal of XᵀX
    class_sums: NDArray[np.float64]  # [S, D] sum of the features of each class
    counts: Indices  # [S] images of each class


def training_set(features: Features, labels: Indices, num_classes: int) -> Training:
    """Sums over `features` [M, D], which come from `Axes.transform` of training images."""
    return Training(
        features,
        labels,
        np.einsum("md,md->d", features, features, dtype=np.float64),
        class_sums(features, labels, num_classes),
        np.bincount(labels, minlength=num_classes),
    )
