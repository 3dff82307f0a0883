"""From assignments of patches to embeddings of images and of classes, by exact sums."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class ClassSums:
    """Running sums from which class embeddings follow; workers' results are added up."""

    sums: NDArray[np.float64]  # [C, D_v], sum of a_n over the class's images
    counts: NDArray[np.int64]  # [C], images
    contingency: NDArray[np.int64]  # [C, D_v], patches by strongest cluster

    def __add__(self, other: "ClassSums") -> "ClassSums":
        return ClassSums(
            self.sums + other.sums, self.counts + other.counts, self.contingency + other.contingency
        )


def empty_sums(num_classes: int, num_clusters: int) -> ClassSums:
    """Sums over no image."""
    shape = (num_classes, num_clusters)
    return ClassSums(np.zeros(shape), np.zeros(num_classes, np.int64), np.zeros(shape, np.int64))


def add_images(
    sums: ClassSums, assignments: NDArray[np.floating], labels: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Add a batch of assignments [B, N, D_v] to `sums` in place.

    Returns the images' embeddings a_n, the means over their patches, float64 [B, D_v].
    """
    means: NDArray[np.float64] = assignments.mean(1, dtype=np.float64)
    np.add.at(sums.sums, labels, means)
    np.add.at(sums.counts, labels, 1)
    np.add.at(sums.contingency, (labels[:, None], assignments.argmax(2)), 1)
    return means


def class_embeddings(sums: ClassSums) -> NDArray[np.float64]:
    """φ(y) [C, D_v], the mean of a_n over the class's images (eq. 5); NaN where there are none."""
    with np.errstate(invalid="ignore"):
        return sums.sums / sums.counts[:, None]
