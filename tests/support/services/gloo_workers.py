"""What two workers (gloo, on this machine) and one worker compute on the same batches.

`run` is spawned once for each worker; `joint` does the same with one worker and the joint batch.
"""

import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distributed.train.ray_trainer import ddp_options
from step_tensors import entropy_loss
from vgse.config import LossConfig, ModelConfig
from vgse.images.backbones import Backbone
from vgse.images.norms import fold_norms
from vgse.training.model import ClusterHead, TrainingModel
from vgse.training.neighbours import NeighbourQueue
from vgse.training.step import StepData, run_step

WORLD, STEPS = 2, 3
IMAGES, PATCHES, FEATURES, CLASSES, CLUSTERS, WORD_SIZE = 7, 3, 8, 4, 6, 5
SHARES = [slice(0, 5), slice(5, 7)]  # uneven, and worker 1 pads its share by one image
MOST, SIDE = 5, 16
MICRO_BATCHES = 4  # more than worker 1 has images
CAPACITY = 50  # more than two steps and less than three: the queue drops some


def batch_of(step: int, rank: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, labels, image ids and weights of a worker, or (None) of the joint batch."""
    generator = torch.Generator().manual_seed(100 + step)
    features = torch.randn(IMAGES, PATCHES, FEATURES, generator=generator)
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
    images = torch.randint(0, 12, (IMAGES,), generator=generator)  # some come again
    weights = torch.ones(IMAGES)
    if rank is None:
        return features, labels, images, weights
    own = [part[SHARES[rank]] for part in (features, labels, images, weights)]
    if rank == 1:
        padding = (torch.full((1, PATCHES, FEATURES), 7.0), *torch.zeros(3, 1))
        own = [torch.cat([a, b.to(a.dtype)]) for a, b in zip(own, padding, strict=True)]
    return own[0], own[1], own[2], own[3]


def build() -> TrainingModel:
    """The same model on every call, with all four losses."""
    torch.manual_seed(1)
    config = ModelConfig(num_clusters=CLUSTERS, projection=4, temperature=0.2)
    head = ClusterHead(config, FEATURES, CLASSES, WORD_SIZE)
    weights = LossConfig(
        classification=1.0, semantic=0.7, consistency=0.5, entropy=0.9, queue_size=CAPACITY
    )
    return TrainingModel(None, head, torch.randn(CLASSES, WORD_SIZE), weights)


def naive_entropy(assignments: Tensor, weights: Tensor, total: int) -> Tensor:
    """The entropy term of a worker's own patches: what must not be averaged."""
    mean = (assignments * weights[:, None]).sum(0) / weights.sum()
    return (mean * mean.log()).sum()


def entropy_and_gradient(rank: int | None, *, naive: bool = False) -> tuple[Tensor, Tensor]:
    """The entropy term of step 0 in float64 and, averaged over workers, its gradient."""
    features, _, _, weights = batch_of(0, rank)
    layer = torch.randn(FEATURES, CLUSTERS, generator=torch.Generator().manual_seed(2)).double()
    layer.requires_grad_()
    assignments = torch.softmax(features.flatten(0, 1).double() @ layer, 1)
    patches = weights.repeat_interleave(PATCHES).double()
    value = (naive_entropy if naive else entropy_loss)(assignments, patches, IMAGES * PATCHES)
    value.backward()
    assert layer.grad is not None
    gradient = layer.grad
    if rank is not None:
        dist.all_reduce(gradient)
        gradient /= WORLD
    return value.detach(), gradient


def train(rank: int | None) -> dict[str, Tensor]:
    """Loss and terms of three steps of SGD (means over workers), then parameters and queue."""
    model = build()
    wrapped: nn.Module = model if rank is None else DistributedDataParallel(model, **ddp_options())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        output = wrapped(*batch_of(step, rank), IMAGES, most_images=MOST)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        figures = {"loss": output.loss.detach(), **output.terms}
        usage = torch.zeros(CLASSES * CLUSTERS).scatter_add_(0, output.cells, output.weights)
        for name, value in figures.items():
            found[f"{name}{step}"] = mean_over_workers(value, rank)
        if rank is not None:
            dist.all_reduce(usage)
        found[f"usage{step}"] = usage
    found |= {f"parameter {name}": p.detach().clone() for name, p in model.named_parameters()}
    return found | {f"queue {name}": value.clone() for name, value in model.queue.state().items()}


def small_queue(rank: int) -> Tensor:
    """Images in a queue of 5 places after 4 patches of each worker, numbered 10 · rank + i."""
    queue = NeighbourQueue(5)
    images = 10 * rank + torch.arange(4)
    queue.push(images[:, None].float(), images, torch.ones(4))
    state = queue.state()
    assert torch.equal(state["features"][:, 0], state["images"].float())
    return state["images"]


def mean_over_workers(value: Tensor, rank: int | None) -> Tensor:
    """float64, the same on all workers."""
    mean = value.double().clone()
    if rank is not None:
        dist.all_reduce(mean)
        mean /= WORLD
    return mean


def build_with_backbone() -> TrainingModel:
    """The same small model from pixels on every call, with all four losses and batch norms that
    are part of their convolutions."""
    torch.manual_seed(1)
    norms = nn.BatchNorm2d(8), nn.BatchNorm2d(FEATURES)
    for norm in norms:  # new ones would change nothing
        for values in (norm.weight.data, norm.running_var):
            values.uniform_(0.5, 1.5)
        for values in (norm.bias.data, norm.running_mean):
            values.uniform_(-0.1, 0.1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        norms[0],
        nn.ReLU(),
        nn.Conv2d(8, FEATURES, 1, bias=False),
        norms[1],
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    backbone = Backbone(network, FEATURES, [network[3], norms[1]]).learn("all")
    assert fold_norms(backbone.eval().network) == 2
    head = build().head
    weights = LossConfig(semantic=0.7, consistency=0.5, entropy=0.9, queue_size=CAPACITY)
    return TrainingModel(backbone, head, torch.randn(CLASSES, WORD_SIZE), weights).train()


def pixels_of(step: int, rank: int | None) -> StepData:
    """A worker's part of a step, or (None) the whole, from pixels."""
    generator = torch.Generator().manual_seed(100 + step)
    shape = (IMAGES, PATCHES, 3, SIDE, SIDE)
    # Contrasts differ, or all patches would look alike to a network that has learned nothing.
    scale = torch.rand(IMAGES, PATCHES, 3, 1, 1, generator=generator)
    pixels = (torch.randint(0, 256, shape, generator=generator) * scale).to(torch.uint8)
    own = slice(None) if rank is None else SHARES[rank]
    _, labels, images, weights = batch_of(step, rank)
    pixels = pixels[own]
    if rank == 1:
        pixels = torch.cat([pixels, torch.full((1, *shape[1:]), 9, dtype=torch.uint8)])
    return StepData(pixels, labels, images.clamp_min(0), weights, IMAGES, MOST)


def to_device(data: StepData, device: str) -> StepData:
    """A step's data on a device."""
    values = {name: v.to(device) for name, v in vars(data).items() if isinstance(v, Tensor)}
    return replace(data, **values)


def train_pixels(rank: int | None, micro_batches: int) -> dict[str, Tensor]:
    """As `train`, the backbone included, each step in micro-batches."""
    model = build_with_backbone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    wrapped: nn.Module = model
    found: dict[str, Tensor] = {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if rank is not None:
            wrapped = DistributedDataParallel(model, **ddp_options())
        for step in range(STEPS):
            optimizer.zero_grad(set_to_none=rank is None)
            data = pixels_of(step, rank)
            output = run_step(model, wrapped, data, micro_batches=micro_batches)
            optimizer.step()
            for name, value in {"loss": output.loss.detach(), **output.terms}.items():
                found[f"{name}{step}"] = mean_over_workers(value, rank)
    about = [one for one in told if "strides" in str(one.message) or "buffers" in str(one.message)]
    found["DDP warnings"] = torch.tensor(float(len(about)))
    found |= {f"parameter {name}": p.detach().clone() for name, p in model.named_parameters()}
    found |= {f"queue {name}": value.clone() for name, value in model.queue.state().items()}
    return {f"pixels {name}": value.contiguous() for name, value in found.items()}


def run(rank: int, folder: str) -> None:
    """What one of the two workers does; writes `worker<rank>.safetensors`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    found = train(rank)
    found["entropy"], found["entropy gradient"] = entropy_and_gradient(rank)
    found["naive"], found["naive gradient"] = entropy_and_gradient(rank, naive=True)
    found |= train_pixels(rank, MICRO_BATCHES)
    found["small queue"] = small_queue(rank)
    save_file(found, Path(folder) / f"worker{rank}.safetensors")
    dist.destroy_process_group()


def joint() -> dict[str, Tensor]:
    """The same from one worker with the joint batch."""
    found = train(None)
    found["entropy"], found["entropy gradient"] = entropy_and_gradient(None)
    return found | train_pixels(None, 1)
