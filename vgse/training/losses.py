"""The losses of VGSE, right over the global batch of a distributed run.

Each returns this worker's share, scaled so that the mean over workers (which is what
DistributedDataParallel takes of gradients) is the gradient of the loss over the global batch.
Losses: Xu et al., "VGSE", CVPR 2022, eq. 1-4; the neighbour term follows Van Gansbeke et al.,
"SCAN", ECCV 2020.

To add a loss, write a function here under `@loss()` and give `LossConfig` a float of its name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def world_size() -> int:
    """Number of workers of this run, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _floats(values: Tensor) -> Tensor:
    """At least float32: half precision comes from autocast, float64 from tests."""
    return values if values.dtype == torch.float64 else values.float()


@dataclass(frozen=True)
class AssignmentSum:
    """Assignments summed over a step, on their way from the other workers."""

    own: Tensor  # [D_v], this worker's, with their graph
    everywhere: Tensor  # [D_v], all workers', complete once `work` is done
    work: dist.Work | None

    def mean(self, total: int) -> Tensor:
        """ā [D_v], the mean over the step's `total` patches (waits for the other workers).

        Its gradient flows through this worker's patches only and is scaled by W, so that the mean
        over workers is the gradient of the global ā.
        """
        if self.work is not None:
            self.work.wait()
        return (self.everywhere + world_size() * (self.own - self.own.detach())) / total


def sum_assignments(assignments: Tensor, weights: Tensor) -> AssignmentSum:
    """Begin to sum assignments [n, D_v] over all workers; other work can go on meanwhile."""
    own = (_floats(assignments) * weights[:, None]).sum(0)  # [D_v]
    everywhere = own.detach().clone()
    work = dist.all_reduce(everywhere, async_op=True) if world_size() > 1 else None
    return AssignmentSum(own, everywhere, work)


@dataclass(frozen=True)
class StepTensors:
    """What losses are made from: this worker's n patches of a step."""

    embedded: Tensor  # [n, D_p], rows of length 1
    assignments: Tensor  # [n, D_v], rows that sum to 1
    logits: Tensor  # [n, S], Q a
    predicted: Tensor  # [n, D_w], S a
    labels: Tensor  # int64 [n], in 0..S-1
    words: Tensor  # [n, D_w], the word vector of each patch's class
    weights: Tensor  # [n], 0 for padding and 1 otherwise
    total: int  # patches of the step over all workers
    assignment_sum: AssignmentSum | None = None  # where a loss uses the mean
    neighbours: Tensor | None = None  # [n, D_v], where a loss uses them and there are any yet
    has_neighbour: Tensor | None = None  # bool [n]

    def mean_over_patches(self, values: Tensor) -> Tensor:
        """Σ wᵢ · valuesᵢ / total · W of values [n]."""
        return (values * self.weights).sum() * (world_size() / self.total)


Loss = Callable[[StepTensors], Tensor]
Uses = Literal["mean", "neighbours"]

LOSSES: dict[str, Loss] = {}
"""Every loss by the name of its weight in `LossConfig`, in the order in which they are added up."""
USES: dict[str, tuple[Uses, ...]] = {}
"""What must be prepared for a loss: the mean over all workers, or neighbours from the queue."""


def loss(*uses: Uses) -> Callable[[Loss], Loss]:
    """Register a function under its name."""

    def register(function: Loss) -> Loss:
        LOSSES[function.__name__], USES[function.__name__] = function, uses
        return function

    return register


@loss()
def classification(step: StepTensors) -> Tensor:
    """Σ wᵢ · cross-entropy(Q aᵢ, yᵢ) / total · W."""
    logits = _floats(step.logits)
    return step.mean_over_patches(F.cross_entropy(logits, step.labels, reduction="none"))


@loss()
def semantic(step: StepTensors) -> Tensor:
    """Σ wᵢ · ‖S aᵢ - w(yᵢ)‖₂ / total · W."""
    squares = (_floats(step.predicted) - step.words).square().sum(1)
    return step.mean_over_patches((squares + 1e-12).sqrt())


@loss("neighbours")
def consistency(step: StepTensors) -> Tensor:
    """-Σ wᵢ · ln⟨aᵢ, a(neighbour of i)⟩ / total · W (SCAN, the first term of its eq. 2)."""
    if step.neighbours is None or step.has_neighbour is None:
        return 0.0 * step.assignments.sum()
    agreement = (_floats(step.assignments) * _floats(step.neighbours)).sum(1).clamp_min(1e-8)
    return -step.mean_over_patches(agreement.log() * step.has_neighbour)


@loss("mean")
def entropy(step: StepTensors) -> Tensor:
    """Σₖ āₖ ln āₖ of the mean assignments ā; in -ln D_v..0, lowest if clusters are used alike."""
    assert step.assignment_sum is not None
    mean = step.assignment_sum.mean(step.total)
    return (mean * mean.clamp_min(1e-12).log()).sum()
