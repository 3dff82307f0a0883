"""Measures of the clusters themselves, and the causes that a run's figures name."""

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from vgse.health import (
    chance_information,
    findings,
    nearest_class_mean,
    normalised_mutual_information,
    own_class_mean,
    usage,
)


def contingency(classes: list[int], clusters: list[int]) -> np.ndarray:
    table = np.zeros((max(classes) + 1, max(clusters) + 2), np.int64)  # one cluster is empty
    np.add.at(table, (classes, clusters), 1)
    return table


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_the_mutual_information_is_that_of_scikit_learn(noise: float) -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 6, 500)
    clusters = np.where(rng.random(500) < noise, rng.integers(0, 9, 500), classes)
    found = normalised_mutual_information(contingency(classes.tolist(), clusters.tolist()))
    expected = normalized_mutual_info_score(classes, clusters)
    assert found == pytest.approx(expected, abs=1e-12)
    assert (found == pytest.approx(1)) == (noise == 0)


def test_one_cluster_and_an_empty_table_have_no_information() -> None:
    assert normalised_mutual_information(contingency([0, 1, 2], [0, 0, 0])) == 0
    assert normalised_mutual_information(np.zeros((3, 4), np.int64)) == 0
    assert normalised_mutual_information(np.array([[7]])) == 0


MEANS = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [9.0, 9.0]])
POINTS = np.array([[0.1, 0.2], [3.0, 0.0], [0.2, 0.1], [1.9, 0.0], [2.1, 0.0], [0.0, 3.0]])
TRUTH = np.array([0, 1, 1, 0, 0, 2])


def test_nearest_class_mean_is_the_mean_of_the_classes_accuracies() -> None:
    # class 0: 2 of 3 right, class 1: 1 of 2, class 2: 1 of 1; class 3 has no image
    found = nearest_class_mean(POINTS, TRUTH, MEANS, np.array([0, 1, 2, 3]))
    assert found == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_nearest_class_mean_looks_at_the_chosen_classes_alone() -> None:
    # point 2 lies nearest to class 0, which is not chosen, and then to its own
    found = nearest_class_mean(POINTS, TRUTH, MEANS, np.array([2, 1]))
    assert found == pytest.approx(1)
    assert math.isnan(nearest_class_mean(POINTS, TRUTH, MEANS, np.array([3])))


def test_without_classes_there_is_no_accuracy() -> None:
    nothing = np.array([], np.int64)
    assert np.isnan(nearest_class_mean(np.ones((2, 3)), np.zeros(2, int), np.ones((1, 3)), nothing))


def test_a_class_without_a_mean_attracts_no_image() -> None:
    means = MEANS.copy()
    means[3] = np.nan
    found = nearest_class_mean(POINTS, TRUTH, means, np.array([0, 1, 2, 3]))
    assert found == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_usage_counts_clusters_and_their_relative_entropy() -> None:
    assert usage(np.array([5, 5, 5, 5])) == (4, pytest.approx(1))
    assert usage(np.array([20, 0, 0, 0])) == (1, 0)
    shares = np.array([0.5, 0.25, 0.25])
    expected = -(shares * np.log(shares)).sum() / math.log(4)
    assert usage(np.array([2, 1, 1, 0])) == (3, pytest.approx(expected))
    assert usage(np.zeros(4, np.int64)) == (0, 0)


def dealt(images: int, patches: int, related: float, seed: int) -> np.ndarray:
    """Patches of 10 classes in 20 clusters; a share of the images has the cluster of its class."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, 10, images)
    clusters = np.where(random.random(images) < related, classes, random.integers(0, 20, images))
    table = np.zeros((10, 20), np.int64)
    np.add.at(table, (classes, clusters), patches)  # all patches of an image alike: the worst case
    return table


def test_the_information_of_chance_is_that_of_labels_dealt_out_at_random() -> None:
    found = [normalised_mutual_information(dealt(2000, 9, 0.0, seed)) for seed in range(20)]
    assert chance_information(dealt(2000, 9, 0.0, 0), 2000) == pytest.approx(
        float(np.mean(found)), rel=0.1
    )
    related = dealt(2000, 9, 0.3, 0)
    assert normalised_mutual_information(related) > 1.5 * chance_information(related, 2000)
    assert chance_information(np.zeros((3, 4), np.int64), 0) == 0


def epoch(**changes: Any) -> dict[str, Any]:
    healthy = {
        "epoch": 2,
        "loss": 2.0,
        "classification": 1.5,
        "used_clusters": 140,
        "usage_entropy": 0.9,
        "loader_stall": 0.05,
        "worker_stalls": [0.04, 0.06, 0.05],
        "nmi": 0.4,
        "nmi_chance": 0.1,
        "seconds": 50.0,
        "restarts": 1,
        "restart_seconds": 5.0,
    }
    return healthy | changes


def test_a_healthy_run_has_no_findings() -> None:
    assert findings([epoch(), epoch()], 150, 80) == []
    assert findings([], 150, 80) == []
    assert findings([epoch(loader_stall=0.9, used_clusters=3), epoch()], 150, 80) == []


@pytest.mark.parametrize(
    ("changes", "cause", "remedy"),
    [
        ({"used_clusters": 60}, "dead clusters", "raise loss.entropy"),
        ({"classification": 4.38}, "stuck at ln S", "lower model.temperature"),
        ({"usage_entropy": 0.3}, "uneven clusters", "raise loss.entropy"),
        ({"loader_stall": 0.4}, "slow loading", "cluster.loader_workers"),
        ({"loss": math.nan, "classification": math.nan}, "diverged", "training.learning_rate"),
        ({"loss": math.inf}, "diverged", "lower training.learning_rate"),
        ({"restarts": 2, "restart_seconds": 40.0}, "restarts", "2 restarts after lost workers"),
        ({"worker_stalls": [0.1, 0.5, 0.1]}, "one slow worker", "worker 1 waited for data 50%"),
    ],
)
def test_each_cause_is_named_with_its_remedy(
    changes: dict[str, Any], cause: str, remedy: str
) -> None:
    found = findings([epoch(), epoch(**changes)], 150, 80)
    assert [finding["cause"] for finding in found] == [cause]
    assert remedy in found[0]["sentence"]
    assert "\n" not in found[0]["sentence"]


def test_workers_that_wait_alike_are_not_told_apart() -> None:
    found = findings([epoch(worker_stalls=[0.5, 0.4, 0.45], loader_stall=0.45)], 150, 80)
    assert [finding["cause"] for finding in found] == ["slow loading"]
    assert findings([epoch(worker_stalls=[0.15, 0.01, 0.01])], 150, 80) == []
    alone = {key: value for key, value in epoch().items() if key != "worker_stalls"}
    assert findings([alone], 150, 80) == []


def test_labels_that_clusters_know_nothing_of_are_named() -> None:
    first = epoch(epoch=1, nmi=0.11)
    (found,) = findings([first, epoch(nmi=0.6)], 150, 80)  # learned by heart later
    assert found["cause"] == "labels unrelated to images"
    assert "shards check" in found["sentence"]
    assert findings([epoch(epoch=1, nmi=0.2), epoch()], 150, 80) == []
    few = epoch(epoch=1, nmi=0.30, nmi_chance=0.29)  # too few images to tell
    assert findings([few, epoch()], 150, 80) == []
    late = epoch(epoch=5, nmi=0.11)  # not the first epoch of the run
    assert findings([late, epoch()], 150, 80) == []


def test_the_first_epoch_is_not_yet_stuck() -> None:
    assert findings([epoch(classification=4.38)], 150, 80) == []


def test_an_image_is_not_compared_with_a_mean_that_holds_it() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([2, 5, 7], [3, 4, 1])
    points = rng.normal(size=(8, 4)) + 1.5 * rng.normal(size=(8, 4))[labels % 3]
    right: dict[int, list[bool]] = {2: [], 5: []}
    for i, label in enumerate(labels[:7]):  # class 7 has one image
        means = [points[(labels == c) & (np.arange(8) != i)].mean(0) for c in (2, 5)]
        distances = [np.linalg.norm(points[i] - mean) for mean in means]
        right[label].append((2, 5)[int(np.argmin(distances))] == label)
    expected = np.mean([np.mean(of_class) for of_class in right.values()])
    assert own_class_mean(points, labels, np.array([2, 5, 7])) == pytest.approx(expected)
    assert math.isnan(own_class_mean(points, labels, np.array([7])))
