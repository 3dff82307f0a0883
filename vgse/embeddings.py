"""From assignments of patches to embeddings of images and of classes, by exact sums."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class ClassSums:
    """Running sums from which class embeddings follow; workers' results are added up.

    Each a_n is added in two parts, in multiples of 2⁻²⁶ and, what is left, of 2⁻⁵²: sums of up to
    2²⁷ images are exact, and neither order nor grouping of images changes a bit of them.
    """

    sums: NDArray[np.float64]  # [C, D_v], sum of a_n over the class's images, the large parts
    rests: NDArray[np.float64]  # [C, D_v], of the small ones
    counts: NDArray[np.int64]  # [C], images
    contingency: NDArray[np.int64]  # [C, D_v], patches by strongest cluster

    def add(self, other: "ClassSums", classes: NDArray[np.integer]) -> None:
        """Add the sums of some classes, the rows of `other`, in place."""
        self.sums[classes] += other.sums
        self.rests[classes] += other.rests
        self.counts[classes] += other.counts
        self.contingency[classes] += other.contingency

    def of(self, classes: NDArray[np.integer]) -> "ClassSums":
        """The sums of some classes alone."""
        return ClassSums(
            self.sums[classes], self.rests[classes], self.counts[classes], self.contingency[classes]
        )


def empty_sums(num_classes: int, num_clusters: int) -> ClassSums:
    """Sums over no image."""
    shape = (num_classes, num_clusters)
    counts, contingency = np.zeros(num_classes, np.int64), np.zeros(shape, np.int64)
    return ClassSums(np.zeros(shape), np.zeros(shape), counts, contingency)


def add_images(
    sums: ClassSums, assignments: NDArray[np.floating], labels: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Add a batch of assignments [B, N, D_v] to `sums` in place.

    Returns the images' embeddings a_n, the means over their patches, float64 [B, D_v].
    """
    means: NDArray[np.float64] = assignments.mean(1, dtype=np.float64)
    large = np.rint(means * 2**26) / 2**26
    np.add.at(sums.sums, labels, large)
    np.add.at(sums.rests, labels, np.rint((means - large) * 2**52) / 2**52)
    np.add.at(sums.counts, labels, 1)
    np.add.at(sums.contingency, (labels[:, None], assignments.argmax(2)), 1)
    return means


def class_embeddings(sums: ClassSums) -> NDArray[np.float64]:
    """φ(y) [C, D_v], the mean of a_n over the class's images (eq. 5); NaN where there are none."""
    with np.errstate(invalid="ignore"):
        return (sums.sums + sums.rests) / sums.counts[:, None]
