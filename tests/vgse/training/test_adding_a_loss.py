"""A loss is one function and one field of the configuration; everything else follows."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from distributed.train.data import StepBatch
from distributed.train.metrics import EpochSums
from vgse import config
from vgse.config import LossConfig, ModelConfig, RunConfig, bounded, loss_symbols, validate
from vgse.training import losses
from vgse.training.losses import LOSSES, USES, StepTensors
from vgse.training.model import ClusterHead, StepOutput, TrainingModel


@dataclass
class WiderLossConfig(LossConfig):
    sharpness: float = bounded(0.25, 0, symbol="shp")


@pytest.fixture
def toy_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LossConfig", WiderLossConfig)
    monkeypatch.setitem(LOSSES, "sharpness", None)  # both go again after the test
    monkeypatch.setitem(USES, "sharpness", ())

    @losses.loss()
    def sharpness(step: StepTensors) -> Tensor:
        return step.mean_over_patches(1 - step.assignments.max(1).values)


def test_every_loss_has_its_weight_in_the_configuration() -> None:
    assert list(LOSSES) == list(loss_symbols())


FEATURES, LABELS = torch.randn(6, 3, 8), torch.arange(6) % 4


def step(weights: LossConfig) -> tuple[StepOutput, float]:
    """A step's output, and what the toy loss should be."""
    head = ClusterHead(ModelConfig(num_clusters=6, projection=5), 8, 4, 2)
    model = TrainingModel(None, head, torch.randn(4, 2), weights)
    output = model(FEATURES, LABELS, torch.arange(6), torch.ones(6), 6)
    return output, float(1 - head(FEATURES.flatten(0, 1)).detach().max(1).values.mean())


@pytest.mark.usefixtures("toy_loss")
def test_a_new_loss_is_part_of_the_steps_loss() -> None:
    weights = WiderLossConfig()
    output, expected = step(weights)
    assert float(output.terms["sharpness"]) == pytest.approx(expected)
    total = sum(getattr(weights, name) * float(term) for name, term in output.terms.items())
    assert float(output.loss.detach()) == pytest.approx(total)
    off, _ = step(WiderLossConfig(sharpness=0.0))
    assert "sharpness" not in off.terms


@pytest.mark.usefixtures("toy_loss")
def test_a_new_loss_stands_in_the_metrics() -> None:
    output, expected = step(WiderLossConfig())
    sums = EpochSums(4, 6, torch.device("cpu"))
    part = FEATURES, LABELS, torch.arange(6), torch.ones(6), 6
    sums.add(output, StepBatch(*part, num_images=6, done_before=0.0))
    row = sums.row(WiderLossConfig())
    assert row["sharpness"] == pytest.approx(expected)
    assert row["loss"] == pytest.approx(float(output.loss.detach()))


@pytest.mark.usefixtures("toy_loss")
def test_a_new_loss_has_its_short_name_and_its_range() -> None:
    assert loss_symbols()["sharpness"] == "shp"
    with pytest.raises(ValueError, match=r"loss.sharpness is -1.0; it must be at least 0"):
        validate(RunConfig(loss=WiderLossConfig(sharpness=-1.0)))
