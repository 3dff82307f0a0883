"""The code of a GPU without one: tensors that pretend to be there have shapes, devices and layouts,
but no values, so whatever would make the host wait for a value, or move one, is seen."""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gloo_workers
from distributed.train.data import StepBatch
from distributed.train.metrics import EpochSums
from distributed.train.prefetch import map_tensors
from vgse.config import TrainingConfig
from vgse.images.backbones import Backbone, build_backbone
from vgse.images.devices import autocast
from vgse.training.model import StepOutput, TrainingModel
from vgse.training.optimizer import make_optimizer
from vgse.training.step import StepData

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch without CUDA")
GPU = torch.device("cuda")
WAITS = (DataDependentOutputException, DynamicOutputShapeException, AssertionError)


class NothingMoves(TorchDispatchMode):
    """Refuse tensors of the host, and with them copies from and to it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        assert {t.device.type for t in tensors} <= {"cuda"}, func
        return result


@pytest.fixture(autouse=True)
def pretence() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")  # by autocast
        yield


def on_gpu(values: Tensor) -> Tensor:
    return torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device=GPU)


def pretend(module: nn.Module) -> None:
    """Move a module to the GPU that is not there, layouts kept."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(on_gpu(value), value.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_gpu(buffer)


def model_and_data(inputs: str, backbone: Backbone | None = None) -> tuple[TrainingModel, StepData]:
    """The small model, or one with another `backbone` that learns, and a step for it."""
    frozen = inputs == "features"
    with unset_fake_temporarily():
        model = gloo_workers.build() if frozen else gloo_workers.build_with_backbone()
        if backbone is not None:
            model.backbone = copy.deepcopy(backbone)
            model.head.projection = nn.Linear(backbone.num_features, 4)
        step = gloo_workers.pixels_of(0, None)
    pretend(model)
    data = map_tensors(step, on_gpu)
    if frozen:
        shape = (gloo_workers.IMAGES, gloo_workers.PATCHES, gloo_workers.FEATURES)
        data = replace(data, inputs=torch.empty(shape, dtype=torch.float16, device=GPU))
    if inputs == "pictures":
        pictures = torch.empty(gloo_workers.IMAGES, 3, 40, 50, dtype=torch.uint8, device=GPU)
        boxes = torch.empty(gloo_workers.IMAGES, gloo_workers.PATCHES, 4, device=GPU)
        data = replace(data, inputs=pictures, boxes=boxes, patch_size=gloo_workers.SIDE)
    return model.train(), data


def forward(model: TrainingModel, data: StepData) -> StepOutput:
    with autocast("cuda", "bfloat16"):
        output: StepOutput = model(
            data.patches(0, len(data.labels)),
            data.labels,
            data.images,
            data.weights,
            data.total_images,
            most_images=data.most_images,
        )
    return output


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    """With all that a real network has: TensorFlow's padding, norms that hold an activation."""
    return build_backbone("efficientnet-lite0", "none")


@pytest.mark.parametrize("inputs", ["pictures", "patches", "features"])
def test_a_step_reads_nothing_back_and_moves_nothing(inputs: str) -> None:
    assert_a_step_moves_nothing(*model_and_data(inputs))


@pytest.mark.parametrize("part", ["last", "all"])
def test_nor_does_a_step_of_the_default_backbone(
    lite0: Backbone, part: Literal["last", "all"]
) -> None:
    assert_a_step_moves_nothing(*model_and_data("pictures", lite0.learn(part)))


def assert_a_step_moves_nothing(model: TrainingModel, data: StepData) -> None:
    optimizer = make_optimizer(model, TrainingConfig())
    assert optimizer.defaults["fused"]
    sums = EpochSums(gloo_workers.CLASSES, gloo_workers.CLUSTERS, GPU)
    batch = StepBatch(**vars(data), num_images=7, done_before=0.0)
    with NothingMoves():
        for _ in range(3):  # the neighbour queue is empty, then filled, then full
            optimizer.zero_grad()
            output = forward(model, data)
            # Backward, torch's own part, asks for a real device.
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
            optimizer.step()
            sums.add(output, batch)
    assert set(output.terms) == {"classification", "semantic", "consistency", "entropy"}


@pytest.mark.parametrize("real", [False, True])
def test_the_embedding_pass_reads_nothing_back_before_its_end(lite0: Backbone, real: bool) -> None:
    model, data = model_and_data("pictures", lite0 if real else None)
    with NothingMoves(), torch.inference_mode():
        patches = data.patches(0, len(data.labels))
        with autocast("cuda", "bfloat16"):
            features = model.features(patches)
        assignments = model.head(features)
    assert assignments.shape == (gloo_workers.IMAGES * gloo_workers.PATCHES, gloo_workers.CLUSTERS)


WAYS: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda values: float(values.sum()),
    "a condition": lambda values: bool(values.sum() > 0),
    "a list": lambda values: values.tolist(),
    "a mask": lambda values: values[values > 0],
    "bincount": lambda values: values.long().bincount(),
    "repeats": lambda values: values.repeat_interleave(values.long()),
    "a copy to the host": lambda values: values.cpu(),
    "a copy from the host": lambda values: values + torch.ones(3).to(GPU),
    "a list as an index": lambda values: values[[0, 1]],
}


@pytest.mark.parametrize("way", WAYS)
def test_what_makes_the_host_wait_would_be_seen(way: str) -> None:
    values = torch.empty(3, device=GPU)
    with NothingMoves(), pytest.raises(WAITS):
        WAYS[way](values)
