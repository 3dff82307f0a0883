"""What two workers (gloo, on this machine) and one worker compute on the same batches.

`run` is spawned once for each worker; `joint` does the same with one worker and the joint batch.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vgse.config import LossConfig, ModelConfig
from vgse.losses import entropy_loss
from vgse.model import ClusterHead, TrainingModel

WORLD, STEPS = 2, 3
IMAGES, PATCHES, FEATURES, CLASSES, CLUSTERS, WORD_SIZE = 7, 3, 8, 4, 6, 5
SHARES = [slice(0, 5), slice(5, 7)]  # uneven, and worker 1 pads its share by one image
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
    wrapped: nn.Module = model if rank is None else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        output = wrapped(*batch_of(step, rank), IMAGES)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        figures = {"loss": output.loss.detach(), **output.terms}
        usage = output.usage.double()
        for name, value in figures.items():
            mean = value.double().clone()
            if rank is not None:
                dist.all_reduce(mean)
                mean /= WORLD
            found[f"{name}{step}"] = mean
        if rank is not None:
            dist.all_reduce(usage)
        found[f"usage{step}"] = usage
    found |= {f"parameter {name}": p.detach().clone() for name, p in model.named_parameters()}
    return found | {f"queue {name}": value.clone() for name, value in model.queue.state().items()}


def run(rank: int, folder: str) -> None:
    """What one of the two workers does; writes `worker<rank>.safetensors`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    found = train(rank)
    found["entropy"], found["entropy gradient"] = entropy_and_gradient(rank)
    found["naive"], found["naive gradient"] = entropy_and_gradient(rank, naive=True)
    save_file(found, Path(folder) / f"worker{rank}.safetensors")
    dist.destroy_process_group()


def joint() -> dict[str, Tensor]:
    """The same from one worker with the joint batch."""
    found = train(None)
    found["entropy"], found["entropy gradient"] = entropy_and_gradient(None)
    return found
