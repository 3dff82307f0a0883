"""Image and class embeddings against a plain loop, and the merging of workers' sums."""

import numpy as np
from numpy.typing import NDArray

from vgse.embeddings import ClassSums, add_images, class_embeddings, empty_sums

IMAGES, PATCHES, CLUSTERS, CLASSES = 40, 3, 5, 6


def draw(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Assignments [IMAGES, PATCHES, CLUSTERS] and labels; class 5 has no image."""
    rng = np.random.default_rng(seed)
    assignments = rng.dirichlet(np.full(CLUSTERS, 0.3), (IMAGES, PATCHES)).astype(np.float32)
    return assignments, rng.integers(0, CLASSES - 1, IMAGES)


def sums_of(assignments: NDArray[np.floating], labels: NDArray[np.int64]) -> ClassSums:
    sums = empty_sums(CLASSES, CLUSTERS)
    add_images(sums, assignments, labels)
    return sums


def test_class_embeddings_are_those_of_a_plain_loop() -> None:
    assignments, labels = draw()
    found = class_embeddings(sums_of(assignments, labels))
    for label in range(CLASSES - 1):
        images = []
        for patches, own in zip(assignments.tolist(), labels.tolist(), strict=True):
            if own == label:
                columns = zip(*patches, strict=True)
                images.append([sum(column) / PATCHES for column in columns])
        mean = [sum(column) / len(images) for column in zip(*images, strict=True)]
        np.testing.assert_allclose(found[label], mean, rtol=1e-12)
    np.testing.assert_allclose(found[: CLASSES - 1].sum(1), 1, atol=1e-6)


def test_every_image_counts_alike_also_in_batches_that_repeat_a_class() -> None:
    assignments, labels = draw()
    same = np.zeros_like(labels)
    sums = sums_of(assignments, same)
    assert sums.counts.tolist() == [IMAGES] + [0] * (CLASSES - 1)
    mean = assignments.astype(np.float64).mean(1).mean(0)
    np.testing.assert_allclose(class_embeddings(sums)[0], mean, rtol=1e-12)


def test_a_class_without_images_has_no_embedding() -> None:
    found = class_embeddings(sums_of(*draw()))
    assert np.isnan(found[CLASSES - 1]).all()
    assert np.isfinite(found[: CLASSES - 1]).all()


def test_the_images_embeddings_are_float64_means_over_patches() -> None:
    assignments, labels = draw()
    half = assignments.astype(np.float16)
    found = add_images(empty_sums(CLASSES, CLUSTERS), half, labels)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, half.astype(np.float64).sum(1) / PATCHES)


def test_the_contingency_counts_patches_by_class_and_strongest_cluster() -> None:
    assignments, labels = draw()
    table = np.zeros((CLASSES, CLUSTERS), np.int64)
    for image in range(IMAGES):
        for patch in range(PATCHES):
            table[labels[image], assignments[image, patch].argmax()] += 1
    sums = sums_of(assignments, labels)
    np.testing.assert_array_equal(sums.contingency, table)
    assert sums.contingency.sum() == IMAGES * PATCHES


def test_sums_of_any_number_of_workers_merge_into_the_same() -> None:
    assignments, labels = draw()
    whole = sums_of(assignments, labels)
    own = assignments[labels == 0].mean(1, dtype=np.float64)
    plain = [own[::step].cumsum(0)[-1] for step in (1, -1)]
    assert (plain[0] != plain[1]).any()  # what is added plainly depends on the order
    order = np.random.default_rng(1).permutation(IMAGES)
    for workers in (1, 2, 4, 7):
        merged = empty_sums(CLASSES, CLUSTERS)
        for part in np.array_split(order, workers):
            own = sums_of(assignments[part], labels[part])
            met = np.unique(labels[part])
            merged.add(own.of(met), met)
        for name, value in vars(whole).items():
            np.testing.assert_array_equal(getattr(merged, name), value, name)


def test_many_small_numbers_are_added_without_loss() -> None:
    assignments = np.full((1000, 2, CLUSTERS), 1e-4, np.float32)
    assignments[:, :, 0] = 0.9996
    sums = empty_sums(CLASSES, CLUSTERS)
    for _ in range(50):
        add_images(sums, assignments, np.zeros(1000, np.int64))
    expected = assignments[0, 0].astype(np.float64)
    np.testing.assert_allclose(class_embeddings(sums)[0], expected, rtol=1e-11)
    single = np.zeros(1, np.float32)
    for _ in range(50_000):
        single += np.float32(0.9996)
    assert abs(single[0] / 50_000 - expected[0]) > 1e-6  # float32 would have lost this
