"""A small world in which word vectors, pictures and clusters follow from the same causes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vgse.zsl.data import ZslData


@dataclass(frozen=True)
class Toy:
    """Data with the class embeddings that belong to it."""

    data: ZslData
    own: NDArray[np.float64]  # [C, 10]
    words: NDArray[np.float64]  # [C, 8]


def make_toy(
    num_classes: int = 40, images_a_class: int = 12, noise: float = 0.15, seed: int = 0
) -> Toy:
    """Forty classes of five causes: 30 seen, of which 6 are for validation, and 10 unseen."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(size=(num_classes, 5))
    words = causes @ rng.normal(size=(5, 8))
    words -= words.mean(0)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    means = causes @ rng.normal(size=(5, 20))
    own = means @ rng.normal(size=(20, 10))
    labels = np.repeat(np.arange(num_classes), images_a_class)
    features = means[labels] + noise * means.std() * rng.normal(size=(len(labels), 20))
    classes = rng.permutation(num_classes)
    num_unseen = num_classes // 4
    unseen, seen = np.sort(classes[:num_unseen]), np.sort(classes[num_unseen:])
    of_seen = np.isin(labels, seen)
    number = np.arange(len(labels)) % images_a_class
    data = ZslData(
        features.astype(np.float32),
        labels.astype(np.int64),
        np.flatnonzero(of_seen & (number < images_a_class * 3 // 4)),
        np.flatnonzero(of_seen & (number >= images_a_class * 3 // 4)),
        np.flatnonzero(~of_seen),
        [f"class {c:02d}" for c in range(num_classes)],
        seen,
        unseen,
        np.sort(rng.permutation(seen)[: len(seen) // 5]),
    )
    return Toy(data, own, words)
