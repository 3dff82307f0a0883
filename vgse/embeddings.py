"""From assignments of patches to embeddings of images and of classes, by exact sums."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class ClassSums:
    """Running sums from which class embeddings and cluster measures follow.

    Sums are float64, and adding two of them is how workers' results are reduced.
    """

    sums: NDArray[np.float64]  # [C, D_v], sum of a_n over the class's images
    counts: NDArray[np.int64]  # [C], images
    contingency: NDArray[np.int64]  # [C, D_v], patches by strongest cluster

    def __add__(self, other: "ClassSums") -> "ClassSums":
        return ClassSums(
            self.sums + other.sums,
            self.counts + other.counts,
            self.contingency + other.contingency,
        )


def empty_sums(num_classes: int, num_clusters: int) -> ClassSums:
    """Sums over no image."""
    shape = (num_classes, num_clusters)
    return ClassSums(np.zeros(shape), np.zeros(num_classes, np.int64), np.zeros(shape, np.int64))


def image_embeddings(assignments: NDArray[np.floating]) -> NDArray[np.float64]:
    """a_n, the mean over an image's patches: [B, N, D_v] -> float64 [B, D_v]."""
    return assignments.mean(1, dtype=np.float64)


def add_images(
    sums: ClassSums, assignments: NDArray[np.floating], labels: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Add a batch of images to `sums` in place.

    Args:
        sums: what was summed so far.
        assignments: [B, N, D_v].
        labels: [B], in 0..C-1.

    Returns:
        The images' embeddings a_n, float64 [B, D_v].
    """
    means = image_embeddings(assignments)
    np.add.at(sums.sums, labels, means)
    np.add.at(sums.counts, labels, 1)
    np.add.at(sums.contingency, (labels[:, None], assignments.argmax(2)), 1)
    return means


def class_embeddings(sums: ClassSums) -> NDArray[np.float64]:
    """φ(y), the mean of a_n over the class's images (eq. 5); NaN for a class without images.

    Returns:
        float64 [C, D_v], rows that sum to 1.
    """
    with np.errstate(invalid="ignore"):
        return sums.sums / sums.counts[:, None]
