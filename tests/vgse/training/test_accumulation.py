"""A step in micro-batches has the loss, the gradient and the queue of the whole step."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import gloo_workers
from distributed.setup import learned
from vgse.config import BackboneConfig, RunConfig, TrainingConfig, to_dict
from vgse.images import norms
from vgse.images.patches import cut_patches, grid_boxes
from vgse.training.model import StepOutput
from vgse.training.step import StepData, run_step

Found = tuple[StepOutput, dict[str, Tensor], dict[str, Tensor]]


def two_steps(micro_batches: int, precision: str = "float32") -> Found:
    """The second step's output, its gradients, and the queue after it."""
    model = gloo_workers.build_with_backbone()
    for number in range(2):  # the first one fills the queue
        model.zero_grad()
        data = gloo_workers.pixels_of(number, None)
        output = run_step(model, model, data, micro_batches=micro_batches, precision=precision)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return output, gradients, model.queue.state()


def largest_gap(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Largest distance of two tensors of one name, relative to the tensor's largest entry."""
    assert some.keys() == others.keys()
    return max(float((some[n] - others[n]).abs().max() / others[n].abs().max()) for n in some)


@pytest.mark.parametrize("micro_batches", [2, 3, 4, 7, 100])
def test_micro_batches_have_the_loss_gradient_and_queue_of_the_whole_step(
    micro_batches: int,
) -> None:
    whole, gradients, queue = two_steps(1)
    parts, own, own_queue = two_steps(micro_batches)
    assert whole.terms["consistency"] > 0.1
    torch.testing.assert_close(parts.loss, whole.loss)
    torch.testing.assert_close(parts.terms, whole.terms)
    assert len(gradients) == 14
    assert all(gradient.abs().max() > 1e-5 for gradient in gradients.values())
    assert largest_gap(own, gradients) < 1e-4
    assert torch.equal(parts.cells, whole.cells)
    torch.testing.assert_close(own_queue, queue)


def test_so_they_have_where_a_pass_without_gradients_keeps_its_norms_as_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, gradients, _ = two_steps(1)
    monkeypatch.setattr(norms, "_is_folded", lambda norm, _: torch.is_grad_enabled())
    parts, own, _ = two_steps(3)
    torch.testing.assert_close(parts.terms, whole.terms)
    assert largest_gap(own, gradients) < 1e-4


def test_to_add_the_losses_of_micro_batches_is_something_else() -> None:
    _, gradients, _ = two_steps(1)
    model = gloo_workers.build_with_backbone()
    run_step(model, model, gloo_workers.pixels_of(0, None))
    model.zero_grad()
    data = gloo_workers.pixels_of(1, None)
    for rows in (slice(0, 4), slice(4, 7)):
        tensors = {name: getattr(data, name)[rows] for name in ("inputs", "labels", "images")}
        model(**tensors, weights=data.weights[rows], total_images=7).loss.backward()
    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert largest_gap(own, gradients) > 0.01


def test_micro_batches_in_bfloat16_teach_every_weight() -> None:
    _, whole, _ = two_steps(1, "bfloat16")
    _, parts, _ = two_steps(3, "bfloat16")
    assert largest_gap(parts, whole) < 0.05
    _, exact, _ = two_steps(1)
    assert largest_gap(whole, exact) > 1e-4  # it was computed in bfloat16


def test_two_workers_with_micro_batches_train_like_one_with_the_joint_batch(
    two_workers: list[dict[str, Tensor]], one_worker: dict[str, Tensor]
) -> None:
    names = {name for name in one_worker if name.startswith("pixels ")}
    assert "pixels consistency1" in names
    start = gloo_workers.build_with_backbone().named_parameters()
    for name, value in start:
        assert (one_worker[f"pixels parameter {name}"] - value).abs().max() > 1e-4, name
    for worker in two_workers:
        assert {name for name in worker if name.startswith("pixels ")} == names
        for name in names:
            gap = (worker[name].double() - one_worker[name].double()).abs().max()
            assert float(gap) < 1e-5, name


def test_ddp_finds_gradients_and_options_as_it_wants_them(
    two_workers: list[dict[str, Tensor]],
) -> None:
    assert [worker["pixels DDP warnings"].item() for worker in two_workers] == [0, 0]


def test_cached_features_have_nothing_to_split() -> None:
    found = []
    for micro_batches in (1, 4):
        model = gloo_workers.build()
        data = StepData(*gloo_workers.batch_of(0, None), gloo_workers.IMAGES)
        run_step(model, model, data, micro_batches=micro_batches, precision="bfloat16")
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert largest_gap(found[1], found[0]) == 0


def test_a_run_may_go_on_with_other_micro_batches_or_compiled() -> None:
    def content(backbone: BackboneConfig, training: TrainingConfig) -> dict[str, Any]:
        return learned(to_dict(RunConfig(backbone=backbone, training=training)))

    plain = content(BackboneConfig(), TrainingConfig())
    assert content(BackboneConfig(compile=True), TrainingConfig(accumulate=4)) == plain
    assert content(BackboneConfig(), TrainingConfig(batch_size=32)) != plain


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_pictures_are_cut_in_the_step_as_they_would_be_before(micro_batches: int) -> None:
    data = gloo_workers.pixels_of(0, None)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (7, 3, 40, 40), dtype=torch.uint8, generator=generator)
    boxes = torch.from_numpy(grid_boxes(3)).expand(7, 3, 4) * torch.rand(7, 1, 1)
    outputs = []
    for one in (
        replace(data, inputs=cut_patches(pictures, boxes, 16)),
        replace(data, inputs=pictures, boxes=boxes, patch_size=16),
        replace(data, inputs=pictures, boxes=boxes * 0.9, patch_size=16),  # the control
    ):
        model = gloo_workers.build_with_backbone()
        outputs.append(run_step(model, model, one, micro_batches=micro_batches))
    torch.testing.assert_close(outputs[1].terms, outputs[0].terms)
    gap = (outputs[2].terms["classification"] - outputs[0].terms["classification"]).abs()
    assert gap > 1e-5
