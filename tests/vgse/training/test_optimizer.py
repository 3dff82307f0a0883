"""The optimiser, its groups, and its state beside weights that lie in channels_last order."""

import copy
from typing import Literal

import pytest
import torch

import gloo_workers
from distributed.train.data import StepBatch
from distributed.train.metrics import EpochSums
from vgse.config import TrainingConfig
from vgse.training.optimizer import make_optimizer, match_layout
from vgse.training.step import run_step


def test_every_learning_parameter_has_its_peak_rate_once() -> None:
    model = gloo_workers.build_with_backbone()
    assert model.backbone is not None
    model.backbone.learn("last")
    rates = TrainingConfig(
        learning_rate=1.0, regressor_learning_rate=2.0, backbone_learning_rate=3.0
    )
    optimizer = make_optimizer(model, rates)
    peaks = {id(p): g["peak"] for g in optimizer.param_groups for p in g["params"]}
    expected = {
        id(p): 3.0
        if name.startswith("backbone")
        else 2.0
        if "or." in name or "er." in name
        else 1.0
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert peaks == expected
    assert sorted(set(peaks.values())) == [1.0, 2.0, 3.0]


def test_moments_from_a_checkpoint_are_laid_out_as_their_parameters() -> None:
    model = gloo_workers.build_with_backbone()
    optimizer = make_optimizer(model, TrainingConfig())
    run_step(model, model, gloo_workers.pixels_of(0, None))
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():  # row by row, as a file holds them
        for name, value in state.items():
            state[name] = value.contiguous()
    optimizer.load_state_dict(saved)
    assert model.backbone is not None
    weight = model.backbone.network[0].weight  # type: ignore[index, union-attr]
    before = optimizer.state[weight]["exp_avg"].clone()
    assert optimizer.state[weight]["exp_avg"].stride() != weight.stride()
    match_layout(optimizer)
    assert optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    assert torch.equal(optimizer.state[weight]["exp_avg"], before)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_training_goes_on_from_such_moments_as_if_it_had_not_stopped(
    name: Literal["adamw", "sgd"],
) -> None:
    after = []
    for stopped in (False, True):
        model = gloo_workers.build_with_backbone()
        optimizer = make_optimizer(model, TrainingConfig(optimizer=name))
        for number in range(3):
            if stopped and number == 1:
                saved = copy.deepcopy(optimizer.state_dict())
                for state in saved["state"].values():
                    state.update({name: v.contiguous() for name, v in state.items()})
                optimizer.load_state_dict(saved)
                match_layout(optimizer)
            optimizer.zero_grad()
            run_step(model, model, gloo_workers.pixels_of(number, None))
            optimizer.step()
        after.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_on_a_gpu_is_that_of_the_cpu_and_waits_for_nothing(
    name: Literal["adamw", "sgd"],
) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = gloo_workers.build_with_backbone().to(device)
        optimizer = make_optimizer(model, TrainingConfig(optimizer=name))
        assert bool(optimizer.defaults["fused"]) == (device == "cuda")
        steps = [gloo_workers.pixels_of(number, None) for number in range(3)]
        moved = [gloo_workers.to_device(step, device) for step in steps]
        sums = EpochSums(gloo_workers.CLASSES, gloo_workers.CLUSTERS, torch.device(device))
        losses = []
        for number, data in enumerate(moved):
            if number == 2:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer.load_state_dict(state)
                match_layout(optimizer)
            batch = StepBatch(**vars(data), num_images=7, done_before=0.0)
            if device == "cuda" and number:
                torch.cuda.set_sync_debug_mode("error")  # the first step chooses kernels
            try:
                optimizer.zero_grad()
                output = run_step(model, model, data, micro_batches=1 + number)
                optimizer.step()
                sums.add(output, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            losses.append(output.loss.detach())
        found.append(torch.cat([torch.stack(losses).double().cpu(), sums.total()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_a_wait_for_the_device_would_be_seen() -> None:
    values = torch.ones(3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            values[values > 0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
