"""What losses are made from, with only the parts that a test cares about."""

from typing import Any

import torch
from torch import Tensor

from vgse.training.losses import LOSSES, StepTensors, sum_assignments


def step_tensors(**given: Any) -> StepTensors:
    """The given tensors of a step; all others are empty."""
    names = ("embedded", "assignments", "logits", "predicted", "labels", "words")
    return StepTensors(**{name: torch.empty(0) for name in names} | given)


def entropy_loss(assignments: Tensor, weights: Tensor, total: int) -> Tensor:
    """The entropy term of a step."""
    everywhere = sum_assignments(assignments, weights)
    return LOSSES["entropy"](step_tensors(weights=weights, total=total, assignment_sum=everywhere))
