"""The clustering layer, its queue, and one training step over one and two workers."""

import numpy as np
import pytest
import torch
from torch import Tensor

import gloo_workers
from vgse.clusters import Projection
from vgse.config import LossConfig, ModelConfig
from vgse.images.backbones import build_backbone
from vgse.training.losses import LOSSES, StepTensors, sum_assignments
from vgse.training.model import ClusterHead, StepOutput, TrainingModel
from vgse.training.neighbours import NeighbourQueue, nearest_in_queue

PATCHES, FEATURES, CLASSES, CLUSTERS = 3, 8, 4, 6


def build(**losses: float) -> TrainingModel:
    torch.manual_seed(0)
    head = ClusterHead(ModelConfig(num_clusters=CLUSTERS, projection=5), FEATURES, CLASSES, 2)
    return TrainingModel(None, head, torch.randn(CLASSES, 2), LossConfig(**losses))  # type: ignore[arg-type]


def batch(
    num_images: int = 6, seed: int = 0, padding: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_images, PATCHES, FEATURES, generator=generator)
    labels = torch.randint(0, CLASSES, (num_images,), generator=generator)
    weights = torch.ones(num_images)
    weights[num_images - padding :] = 0
    images = torch.arange(num_images) + 100 * seed
    return features, labels, images, weights, num_images - padding


def step(model: TrainingModel, **kwargs: int) -> StepOutput:
    output = model(*batch(**kwargs))
    assert isinstance(output, StepOutput)
    return output


def table_of(output: StepOutput) -> Tensor:
    """Patches of each class by their strongest cluster, without padding."""
    real = output.cells[output.weights > 0]
    return torch.bincount(real, minlength=CLASSES * CLUSTERS).view(CLASSES, CLUSTERS)


def test_assignments_are_softmax_of_cosines_over_the_temperature() -> None:
    head = build().head
    features = torch.randn(5, FEATURES)
    found = head(features).detach().numpy()
    assert head.projection is not None
    weight = head.projection.weight.detach().numpy()
    projected = features.numpy() @ weight.T + head.projection.bias.detach().numpy()
    for row, vector in zip(found, projected, strict=True):
        cosines = [
            float(vector @ c / np.linalg.norm(vector) / np.linalg.norm(c))
            for c in head.centroids.detach().numpy()
        ]
        powers = np.exp(np.array(cosines) / 0.1)
        np.testing.assert_allclose(row, powers / powers.sum(), rtol=1e-4)


def test_the_head_starts_where_k_means_ended() -> None:
    head = build().head
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(5, FEATURES)), rng.normal(size=5)
    projection = Projection(weight.astype(np.float32), bias.astype(np.float32))
    centroids = torch.nn.functional.normalize(torch.randn(CLUSTERS, 5), dim=1)
    head.start(projection, centroids)
    features = rng.normal(size=(4, FEATURES)).astype(np.float32)
    expected = features @ weight.T + bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    embedded = head.embed(torch.from_numpy(features))
    np.testing.assert_allclose(embedded.detach(), expected, rtol=1e-4, atol=1e-5)
    nearest = head.assign(centroids).argmax(1)
    assert nearest.tolist() == list(range(CLUSTERS))


def test_without_a_projection_features_are_only_scaled() -> None:
    head = ClusterHead(ModelConfig(num_clusters=CLUSTERS, projection=0), FEATURES, CLASSES, 2)
    features = torch.randn(4, FEATURES)
    expected = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head.embed(features), expected)
    frozen = ClusterHead(ModelConfig(projection=5, train_projection=False), FEATURES, CLASSES, 2)
    assert frozen.projection is not None
    assert not any(p.requires_grad for p in frozen.projection.parameters())


def test_autocast_does_not_coarsen_the_assignments() -> None:
    head = build().head
    embedded = head.embed(torch.randn(50, FEATURES))
    plain = head.assign(embedded)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head.assign(embedded)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain)


def test_the_loss_of_a_step_is_the_weighted_sum_of_the_four() -> None:
    weights = {"classification": 0.5, "semantic": 2.0, "consistency": 0.3, "entropy": 0.7}
    model = build(**weights)
    step(model, seed=1)
    queue = model.queue.state()
    output = step(model)
    inputs, labels, images, _, _ = batch()
    head = model.head
    flat, ones = inputs.flatten(0, 1), torch.ones(18)
    labels, images = labels.repeat_interleave(PATCHES), images.repeat_interleave(PATCHES)
    embedded, shares = head.embed(flat), head(flat)
    similarity = embedded @ queue["features"].T  # no image of step 1 comes again
    neighbours = head.assign(queue["features"][similarity.argmax(1)])
    tensors = StepTensors(
        embedded,
        shares,
        head.classifier(shares),
        head.regressor(shares),
        labels,
        model.word_vectors[labels],
        ones,
        18,
        sum_assignments(shares, ones),
        neighbours,
        ones > 0,
    )
    terms = {name: loss(tensors) for name, loss in LOSSES.items()}
    assert list(terms) == list(weights)
    for name, term in terms.items():
        torch.testing.assert_close(output.terms[name], term.detach())
    total = sum(weights[name] * float(term.detach()) for name, term in terms.items())
    assert float(output.loss.detach()) == pytest.approx(total, rel=1e-5)
    assert not any(term.requires_grad for term in output.terms.values())


@pytest.mark.parametrize("name", ["classification", "semantic", "consistency", "entropy"])
def test_each_loss_can_be_switched_off_and_all_parameters_keep_a_gradient(name: str) -> None:
    model = build(**{name: 0.0})
    for seed in range(2):
        output = step(model, seed=seed)
    assert set(output.terms) == {"classification", "semantic", "consistency", "entropy"} - {name}
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_padding_changes_neither_losses_nor_counts_nor_the_queue() -> None:
    plain, padded = build(), build()
    for seed in range(2):
        first = step(plain, seed=seed)
        inputs, labels, images, weights, total = batch(seed=seed)
        second = padded(
            torch.cat([inputs, torch.full((2, PATCHES, FEATURES), 9.0)]),
            torch.cat([labels, torch.tensor([0, 1])]),
            torch.cat([images, torch.tensor([998, 999])]),
            torch.cat([weights, torch.zeros(2)]),
            total,
        )
        for name, term in first.terms.items():
            torch.testing.assert_close(second.terms[name], term)
        assert torch.equal(table_of(first), table_of(second))
    for name, value in plain.queue.state().items():
        torch.testing.assert_close(padded.queue.state()[name], value)


def test_cells_count_patches_by_class_and_strongest_cluster() -> None:
    model = build()
    output = step(model, padding=2)
    inputs, labels, _, _, _ = batch(padding=2)
    strongest = model.head(inputs.flatten(0, 1)).argmax(1).view(6, PATCHES)
    table = torch.zeros(CLASSES, CLUSTERS, dtype=torch.int64)
    for image in range(4):
        for cluster in strongest[image]:
            table[labels[image], cluster] += 1
    assert torch.equal(table_of(output), table)


def test_the_queue_keeps_the_newest_patches_up_to_its_capacity() -> None:
    queue = NeighbourQueue(7)
    for first in (0, 4, 8):
        images = torch.arange(first, first + 4)
        queue.push(images[:, None].float(), images, torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert queue.state()["images"].tolist() == [3, 4, 5, 7, 8, 9, 11]
    assert queue.state()["features"][:, 0].tolist() == [3, 4, 5, 7, 8, 9, 11]


def test_a_queue_without_capacity_stays_empty_and_gives_no_consistency() -> None:
    model = build(queue_size=0)
    for seed in range(2):
        output = step(model, seed=seed)
        assert output.terms["consistency"] == 0
    assert len(model.queue.state()["images"]) == 0


def test_padding_in_the_queue_is_nobodys_neighbour_and_is_dropped_first() -> None:
    queue = NeighbourQueue(4)
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    queue.push(features, torch.tensor([1, 2, 3]), torch.tensor([1.0, 0.0, 1.0]))
    content = queue.content()
    assert content is not None
    like_padding = torch.tensor([[0.0, 1.0]])
    found = nearest_in_queue(like_padding, torch.tensor([9]), *content)
    assert content[1][found].item() == 3
    assert nearest_in_queue(like_padding, torch.tensor([9]), content[0], torch.tensor([1, 2, 3]))[
        0
    ] != int(found)  # were it not for the mark, another one would be nearest
    queue.push(features, torch.tensor([4, 5, 6]), torch.ones(3))
    assert queue.state()["images"].tolist() == [3, 4, 5, 6]


def test_the_queue_comes_back_from_a_checkpoint() -> None:
    model, other = build(), build()
    assert model.queue.state() == {}
    step(model, seed=1)
    other.queue.restore(model.queue.state())
    torch.testing.assert_close(step(other).terms, step(model).terms)
    fresh = step(build())
    assert fresh.terms["consistency"] == 0


def test_the_queue_is_filled_in_training_only() -> None:
    model = build().eval()
    step(model)
    assert model.queue.state() == {}
    step(model.train())
    assert len(model.queue.state()["images"]) == 6 * PATCHES
    assert not model.queue.state()["features"].requires_grad


def test_an_image_alone_in_the_queue_is_no_neighbour_of_itself() -> None:
    model = build()
    inputs, labels, _, weights, total = batch(1)
    for _ in range(2):
        output = model(inputs, labels, torch.tensor([5]), weights, total)
    assert output.terms["consistency"] == 0
    assert output.loss.isfinite()
    other = model(inputs, labels, torch.tensor([6]), weights, total)
    assert other.terms["consistency"] > 0


def test_pixels_go_through_the_backbone_and_teach_its_last_block() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("efficientnet-lite0", "none").learn("last")
    head = ClusterHead(ModelConfig(num_clusters=CLUSTERS, projection=5), 1280, CLASSES, 2)
    model = TrainingModel(backbone, head, torch.randn(CLASSES, 2), LossConfig()).train()
    pixels = torch.randint(0, 256, (2, PATCHES, 3, 32, 32), dtype=torch.uint8)
    output = model(pixels, torch.tensor([0, 1]), torch.tensor([0, 1]), torch.ones(2), 2)
    output.loss.backward()
    learning = [p for p in backbone.parameters() if p.requires_grad]
    assert learning
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)


def test_training_lowers_the_loss_and_cannot_on_labels_that_change() -> None:
    def last_loss(shuffled: bool) -> float:
        model = build(entropy=0.0, consistency=0.0, semantic=0.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
        inputs, labels, images, weights, total = batch(24)
        generator = torch.Generator().manual_seed(3)
        for _ in range(60):
            order = torch.randperm(24, generator=generator)
            output = model(inputs, labels[order] if shuffled else labels, images, weights, total)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        return float(output.loss.detach())

    assert last_loss(shuffled=False) < 0.8 < 1.2 < last_loss(shuffled=True)


def test_a_queue_with_too_little_room_holds_as_much_of_each_worker(
    two_workers: list[dict[str, Tensor]],
) -> None:
    for worker in two_workers:  # three of four rows were sent; without a bound, 3, 10, 11, 12, 13
        assert worker["small queue"].tolist() == [1, 2, 10, 11, 12]


def test_two_workers_train_like_one_with_the_joint_batch(
    two_workers: list[dict[str, Tensor]], one_worker: dict[str, Tensor]
) -> None:
    start = {f"parameter {n}": p.detach() for n, p in gloo_workers.build().named_parameters()}
    assert one_worker["consistency1"] > 0.1
    assert len(one_worker["queue images"]) == gloo_workers.CAPACITY
    for worker in two_workers:
        names = {key for key in worker if "entropy gradient" not in key and "naive" not in key}
        names -= {"small queue"}
        assert names == set(one_worker) - {"entropy gradient"}
        for name in names:
            gap = float((worker[name].double() - one_worker[name].double()).abs().max())
            assert gap < 1e-5, name
    for name, value in start.items():
        assert (one_worker[name] - value).abs().max() > 1e-3, name  # it has learned
