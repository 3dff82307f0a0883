"""The four losses of VGSE, right over the global batch of a distributed run.

Every function returns this worker's share, scaled so that the mean over workers (which is what
DistributedDataParallel takes of gradients) is the gradient of the loss over the global batch.
Losses: Xu et al., "VGSE", CVPR 2022, eq. 1-4; the neighbour term follows Van Gansbeke et al.,
"SCAN", ECCV 2020.
"""

from dataclasses import dataclass

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


def classification_loss(logits: Tensor, labels: Tensor, weights: Tensor, total: int) -> Tensor:
    """Σ wᵢ · cross-entropy(Q aᵢ, yᵢ) / total · W.

    Args:
        logits: [n, S], Q a.
        labels: int64 [n], in 0..S-1.
        weights: [n], 0 for padding and 1 otherwise.
        total: patches in the step over all workers.
    """
    losses = F.cross_entropy(_floats(logits), labels, reduction="none")
    return (losses * weights).sum() * (world_size() / total)


def semantic_loss(predicted: Tensor, words: Tensor, weights: Tensor, total: int) -> Tensor:
    """Σ wᵢ · ‖S aᵢ - w(yᵢ)‖₂ / total · W.

    Args:
        predicted: [n, D_w], S a.
        words: [n, D_w], the word vector of each patch's class.
        weights: [n].
        total: patches in the step over all workers.
    """
    squares = (_floats(predicted) - words).square().sum(1)
    return ((squares + 1e-12).sqrt() * weights).sum() * (world_size() / total)


def consistency_loss(
    assignments: Tensor, neighbours: Tensor, weights: Tensor, total: int
) -> Tensor:
    """-Σ wᵢ · ln⟨aᵢ, a(neighbour of i)⟩ / total · W (SCAN, the first term of its eq. 2).

    Args:
        assignments, neighbours: [n, D_v], rows that sum to 1.
        weights: [n].
        total: patches in the step over all workers.
    """
    agreement = (_floats(assignments) * _floats(neighbours)).sum(1).clamp_min(1e-8)
    return -(agreement.log() * weights).sum() * (world_size() / total)


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
    """Begin to sum assignments over all workers; other work can go on meanwhile.

    Args:
        assignments: [n, D_v], rows that sum to 1.
        weights: [n], 0 for padding and 1 otherwise.
    """
    own = (_floats(assignments) * weights[:, None]).sum(0)  # [D_v]
    everywhere = own.detach().clone()
    work = dist.all_reduce(everywhere, async_op=True) if world_size() > 1 else None
    return AssignmentSum(own, everywhere, work)


def entropy_of(mean: Tensor) -> Tensor:
    """Σₖ āₖ ln āₖ of mean assignments [D_v]; in -ln D_v..0, lowest when all clusters are used
    alike."""
    return (mean * mean.clamp_min(1e-12).log()).sum()


def nearest_in_queue(
    features: Tensor, images: Tensor, queue_features: Tensor, queue_images: Tensor
) -> Tensor:
    """Index of the queue's most similar patch (cosine) that is not of the same image.

    Args:
        features: [n, D], rows of length 1.
        images: int64 [n], an id of each patch's image.
        queue_features: [m, D], rows of length 1.
        queue_images: int64 [m]; below 0 where the queue holds nothing.

    Returns:
        int64 [n], -1 where the queue holds no other image.
    """
    with torch.no_grad():
        similarity = features.detach() @ queue_features.T
        barred = (images[:, None] == queue_images) | (queue_images < 0)
        similarity.masked_fill_(barred, -2.0)
        best, index = similarity.max(1)
        return index.masked_fill_(best <= -2.0, -1)
