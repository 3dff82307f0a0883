"""Forward and backward of one training step, whole or in micro-batches with the same gradient."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vgse.images.devices import autocast
from vgse.images.patches import cut_patches
from vgse.training.model import StepOutput, TrainingModel


@dataclass(frozen=True)
class StepData:
    """One worker's part of a step, on its device."""

    inputs: Tensor  # patches [B, N, 3, P, P], features [B, N, D_f], or pictures uint8 [B, 3, H, W]
    labels: Tensor  # int64 [B], in 0..S-1
    images: Tensor  # int64 [B], an id of each image, 0 or more
    weights: Tensor  # float32 [B], 0 for padding
    total_images: int  # of the step over all workers
    most_images: int | None = None  # the largest B of all workers; None: the same on all
    boxes: Tensor | None = None  # [B, N, 4] in 0..1: `inputs` are pictures to be cut
    patch_size: int = 0  # P, where there are boxes

    def patches(self, start: int, stop: int) -> Tensor:
        """What the model takes of images start..stop: patches, cut here if need be, or features."""
        if self.boxes is None:
            return self.inputs[start:stop]
        return cut_patches(self.inputs[start:stop], self.boxes[start:stop], self.patch_size)


def run_step(
    model: TrainingModel,
    wrapped: nn.Module,
    data: StepData,
    *,
    micro_batches: int = 1,
    precision: str = "float32",
) -> StepOutput:
    """Add the gradient of a step to the parameters' (a collective call).

    With several micro-batches a backbone that learns holds the activations of one at a time:
    features are computed first, without a graph; the head gives the gradient of the whole step's
    loss by them; and each micro-batch goes through θ once more to carry its part of that back.
    Workers exchange gradients in the last micro-batch alone.

    `wrapped` is the model under DDP where there are several workers; `micro_batches` is the same on
    all of them, whatever their number of images.
    """
    batch = len(data.labels)
    parts = [(0, batch)]
    in_parts = micro_batches > 1 and model.backbone is not None  # alike on all workers
    if in_parts:
        size = -(-batch // micro_batches)
        parts = [(start, min(start + size, batch)) for start in range(0, batch, size)]
    # Cached features are cheap to take in full: the head runs in float32 then.
    precision = precision if model.backbone else "float32"
    mixed = partial(autocast, data.labels.device.type, precision)
    of_images = (data.labels, data.images, data.weights, data.total_images)
    earlier = None
    if in_parts:
        with torch.no_grad(), mixed():
            features = torch.cat([model.features(data.patches(*part)) for part in parts])
        leaf = features.detach().requires_grad_()
        with mixed():
            whole = model.losses_of(leaf, *of_images)[1]
        gradient = torch.autograd.grad(whole.loss, leaf)[0]  # [B · N, D_f]
        num_patches = len(features) // batch
        with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext():
            for start, stop in parts[:-1]:
                with mixed():
                    again = model.features(data.patches(start, stop))
                again.backward(gradient[start * num_patches : stop * num_patches])
        earlier = features[: parts[-1][0] * num_patches]
    with mixed():
        output: StepOutput = wrapped(
            data.patches(*parts[-1]), *of_images, most_images=data.most_images, earlier=earlier
        )
    output.loss.backward()
    return output
