"""Forward and backward of one training step, whole or in micro-batches with the same gradient."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

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
        part = self.inputs[start:stop]
        if self.boxes is None:
            return part
        return cut_patches(part, self.boxes[start:stop], self.patch_size)


def run_step(
    model: TrainingModel,
    wrapped: nn.Module,
    data: StepData,
    *,
    micro_batches: int = 1,
    precision: str = "float32",
) -> StepOutput:
    """Add the gradient of a step to the parameters' (a collective call).

    With several micro-batches a backbone that learns holds the activations of one at a time. The
    loss and its gradient stay those of the whole step, also of the terms that look at all of it
    (ā and the neighbours): features are computed first, without a graph; the head, which is
    small, gives the gradient of the whole step's loss by these features; and each micro-batch
    goes through θ once more to carry its part of that gradient back. This costs one more forward
    pass of θ. Workers exchange gradients in the last micro-batch alone. Without a backbone there
    is nothing to split.

    `wrapped` is the model under DDP where there are several workers; `micro_batches` is the same on
    all of them, whatever their number of images.
    """
    if micro_batches > 1 and model.backbone is not None:
        return _in_micro_batches(model, wrapped, data, micro_batches, precision)
    with _autocast(model, data, precision):
        output: StepOutput = wrapped(
            data.patches(0, len(data.labels)),
            data.labels,
            data.images,
            data.weights,
            data.total_images,
            most_images=data.most_images,
        )
    output.loss.backward()
    return output


def _in_micro_batches(
    model: TrainingModel, wrapped: nn.Module, data: StepData, count: int, precision: str
) -> StepOutput:
    size = -(-len(data.labels) // count)
    starts = range(0, len(data.labels), size)
    parts = [(start, min(start + size, len(data.labels))) for start in starts]
    with torch.no_grad(), _autocast(model, data, precision):
        features = torch.cat([model.features(data.patches(*part)) for part in parts])
    num_patches = len(features) // len(data.labels)
    gradient = _gradient_by_features(model, data, features, num_patches, precision)
    with _no_sync(wrapped):
        for start, stop in parts[:-1]:
            with _autocast(model, data, precision):
                again = model.features(data.patches(start, stop))
            again.backward(gradient[start * num_patches : stop * num_patches])
    start, stop = parts[-1]
    with _autocast(model, data, precision):
        output: StepOutput = wrapped(
            data.patches(start, stop),
            data.labels,
            data.images,
            data.weights,
            data.total_images,
            most_images=data.most_images,
            earlier=features[: start * num_patches],
        )
    output.loss.backward()
    return output


def _gradient_by_features(
    model: TrainingModel, data: StepData, features: Tensor, num_patches: int, precision: str
) -> Tensor:
    """The gradient [B · N, D_f] of the whole step's loss by the features."""
    leaf = features.detach().requires_grad_()
    labels, images, weights = (
        values.repeat_interleave(num_patches) for values in (data.labels, data.images, data.weights)
    )
    with _autocast(model, data, precision):
        total = data.total_images * num_patches
        _, output = model.losses_of(leaf, labels, images, weights, total)
    return torch.autograd.grad(output.loss, leaf)[0]


def _autocast(
    model: TrainingModel, data: StepData, precision: str
) -> AbstractContextManager[object]:
    # Cached features are cheap to take in full: the head runs in float32 then.
    return autocast(data.labels.device.type, precision if model.backbone else "float32")


def _no_sync(wrapped: nn.Module) -> AbstractContextManager[object]:
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()
