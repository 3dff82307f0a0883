"""The four losses against plain loops, finite differences and other numbers of workers."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import gradcheck

from step_tensors import entropy_loss, step_tensors
from vgse.training.losses import classification, consistency, semantic
from vgse.training.neighbours import nearest_in_queue

ROWS, CLUSTERS, CLASSES, WORD_SIZE = 7, 5, 4, 3
WEIGHTS = [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
TOTAL = 11  # patches over all workers, more than there are here


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rows_of_one(seed: int) -> Tensor:
    return torch.softmax(normal(ROWS, CLUSTERS, seed=seed), 1)


LABELS = torch.tensor([0, 3, 1, 2, 2, 0, 1])
LOGITS, PREDICTED = normal(ROWS, CLASSES, seed=0), normal(ROWS, WORD_SIZE, seed=1)
WORDS, SHARES, NEIGHBOURS = normal(ROWS, WORD_SIZE, seed=2), rows_of_one(3), rows_of_one(4)
WEIGHT = torch.tensor(WEIGHTS, dtype=torch.float64)


def written_classification(logits: NDArray[np.float64]) -> float:
    total = 0.0
    for row, label, weight in zip(logits, LABELS.tolist(), WEIGHTS, strict=True):
        total -= weight * (row[label] - math.log(sum(math.exp(x) for x in row)))
    return total / TOTAL


def written_semantic(predicted: NDArray[np.float64]) -> float:
    total = 0.0
    for row, word, weight in zip(predicted, WORDS.numpy(), WEIGHTS, strict=True):
        total += weight * math.sqrt(sum((a - b) ** 2 for a, b in zip(row, word, strict=True)))
    return total / TOTAL


def written_consistency(shares: NDArray[np.float64]) -> float:
    total = 0.0
    for row, other, weight in zip(shares, NEIGHBOURS.numpy(), WEIGHTS, strict=True):
        total -= weight * math.log(sum(a * b for a, b in zip(row, other, strict=True)))
    return total / TOTAL


def written_entropy(shares: NDArray[np.float64]) -> float:
    total = 0.0
    for cluster in range(CLUSTERS):
        mean = sum(w * row[cluster] for w, row in zip(WEIGHTS, shares, strict=True)) / TOTAL
        total += mean * math.log(mean)
    return total


def classification_of(logits: Tensor, weights: Tensor = WEIGHT) -> Tensor:
    return classification(step_tensors(logits=logits, labels=LABELS, weights=weights, total=TOTAL))


def semantic_of(predicted: Tensor, weights: Tensor = WEIGHT) -> Tensor:
    return semantic(step_tensors(predicted=predicted, words=WORDS, weights=weights, total=TOTAL))


def consistency_of(
    shares: Tensor, weights: Tensor = WEIGHT, neighbours: Tensor = NEIGHBOURS
) -> Tensor:
    tensors = {"assignments": shares, "neighbours": neighbours, "weights": weights}
    every = torch.ones(ROWS, dtype=torch.bool)
    return consistency(step_tensors(**tensors, has_neighbour=every, total=TOTAL))


LOSSES = {
    "classification": (classification_of, LOGITS, written_classification),
    "semantic": (semantic_of, PREDICTED, written_semantic),
    "consistency": (consistency_of, SHARES, written_consistency),
    "entropy": (lambda x, w=WEIGHT: entropy_loss(x, w, TOTAL), SHARES, written_entropy),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_formula_written_out(name: str) -> None:
    loss, inputs, written = LOSSES[name]
    assert float(loss(inputs)) == pytest.approx(written(inputs.numpy()), rel=1e-9)
    assert float(loss(inputs)) != pytest.approx(float(loss(inputs, torch.ones(ROWS))), rel=1e-2)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_loss_is_that_of_finite_differences(name: str) -> None:
    loss, inputs, _ = LOSSES[name]
    assert gradcheck(loss, inputs.clone().requires_grad_())


def test_the_consistency_loss_pulls_at_both_sides() -> None:
    def loss(neighbours: Tensor) -> Tensor:
        return consistency_of(SHARES, neighbours=neighbours)

    assert gradcheck(loss, NEIGHBOURS.clone().requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_rows_of_weight_zero_do_not_count(name: str) -> None:
    loss, inputs, _ = LOSSES[name]
    padded, real = inputs.clone(), inputs.clone()
    padded[WEIGHT == 0] = 12.0
    padded.requires_grad_()
    value = loss(padded)
    value.backward()
    assert float(value.detach()) == pytest.approx(float(loss(inputs)), rel=1e-12)
    assert padded.grad is not None
    assert not padded.grad[WEIGHT == 0].any()
    assert padded.grad[WEIGHT > 0].any(1).all()
    real[0] = 12.0
    assert float(loss(real)) != pytest.approx(float(loss(inputs)), rel=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_summed_in_float32(name: str) -> None:
    loss, inputs, _ = LOSSES[name]
    half = inputs.to(torch.bfloat16)
    assert loss(half, WEIGHT.float()).dtype in (torch.float32, torch.float64)
    assert float(loss(half)) == pytest.approx(float(loss(half.double())), rel=1e-5)


def test_the_semantic_loss_has_a_gradient_where_the_prediction_is_exact() -> None:
    exact = WORDS.clone().requires_grad_()
    semantic_of(exact).backward()
    assert exact.grad is not None
    assert exact.grad.isfinite().all()


def test_entropy_is_lowest_when_all_clusters_are_used_alike() -> None:
    alike = torch.eye(CLUSTERS, dtype=torch.float64)
    one = torch.zeros(CLUSTERS, CLUSTERS, dtype=torch.float64)
    one[:, 2] = 1
    weights = torch.ones(CLUSTERS, dtype=torch.float64)
    assert float(entropy_loss(alike, weights, CLUSTERS)) == pytest.approx(-math.log(CLUSTERS))
    assert float(entropy_loss(one, weights, CLUSTERS)) == pytest.approx(0, abs=1e-9)
    collapsed = one.requires_grad_()
    entropy_loss(collapsed, weights, CLUSTERS).backward()
    assert collapsed.grad is not None
    assert collapsed.grad.isfinite().all()  # unused clusters have a logarithm of zero


def test_two_workers_have_the_entropy_and_the_gradient_of_one(
    two_workers: list[dict[str, Tensor]], one_worker: dict[str, Tensor]
) -> None:
    for worker in two_workers:
        assert abs(worker["entropy"] - one_worker["entropy"]) < 1e-6
        gap = (worker["entropy gradient"] - one_worker["entropy gradient"]).abs().max()
        assert gap < 1e-6
    assert one_worker["entropy gradient"].abs().max() > 1e-3


def test_the_mean_of_each_workers_own_entropy_is_something_else(
    two_workers: list[dict[str, Tensor]], one_worker: dict[str, Tensor]
) -> None:
    mean = (two_workers[0]["naive"] + two_workers[1]["naive"]) / 2
    assert abs(mean - one_worker["entropy"]) > 1e-3
    gradient = two_workers[0]["naive gradient"]
    assert (gradient - one_worker["entropy gradient"]).abs().max() > 1e-3


def test_the_nearest_in_the_queue_is_that_of_a_plain_search() -> None:
    features = torch.nn.functional.normalize(normal(30, 4, seed=5), dim=1)
    queue = torch.nn.functional.normalize(normal(50, 4, seed=6), dim=1)
    queue[:20] = features[:20]  # patches of the images themselves, from a step before
    images, queue_images = torch.arange(30) // 3, torch.arange(50) // 3
    found = nearest_in_queue(features, images, queue, queue_images)
    skipped = 0
    for row, index in enumerate(found.tolist()):
        similarity = [float(features[row] @ other) for other in queue]
        order = sorted(range(50), key=lambda i: -similarity[i])
        others = [i for i in order if queue_images[i] != images[row]]
        assert index == others[0]
        skipped += others[0] != order[0]
    assert skipped >= 20  # the nearest of all is of their own image


def test_a_queue_of_the_same_image_alone_has_no_neighbour() -> None:
    features = torch.nn.functional.normalize(normal(4, 3, seed=7), dim=1)
    images = torch.tensor([8, 8, 9, 8])
    found = nearest_in_queue(features, images, features[:2], images[:2])
    assert found.tolist()[:2] == [-1, -1]
    assert found[3] == -1
    assert found[2] >= 0
