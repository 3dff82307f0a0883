"""The metrics of an epoch: losses go by the fields of the configuration."""

import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch

from distributed.train.loggers import scalars
from distributed.train.metrics import EpochSums
from distributed.train.progress import TrainingProgress
from vgse import config
from vgse.config import LossConfig


@dataclass
class ToyConfig(LossConfig):
    """One more loss."""

    toy: float = field(default=2.0, metadata={"symbol": "toy"})


def test_a_loss_more_is_one_field_more_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config, "LossConfig", ToyConfig)
    sums = EpochSums(3, 4, torch.device("cpu"))
    for name, value in {"classification": 4.0, "toy": 6.0, "images": 2, "weight": 2}.items():
        sums.values[sums.index[name]] = value
    row = sums.row(ToyConfig(semantic=0, consistency=0, entropy=0))
    assert (row["classification"], row["toy"], row["loss"]) == (2, 3, 2 + 2 * 3)
    assert scalars(row)["toy"] == 3
    progress = TrainingProgress(1, 2, 4, 3)
    progress.epoch_ended({"epoch": 1, **row})
    assert dict(progress.details())["loss"] == "8.000 (cls 2.00  toy 3.00)"


def test_the_actor_that_shows_a_training_imports_nothing_heavy() -> None:
    names = "{'ray', 'ray.train', 'torch', 'pandas'} & sys.modules.keys()"
    program = f"import sys, distributed.train.progress; print({names})"
    found = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert found.strip() == "{'ray'}"
