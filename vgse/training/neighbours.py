"""Neighbours of patches among those of recent steps, from all workers."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vgse.training.losses import world_size

# Before torch 2.14 it had another name.
_all_gather_single: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def nearest_in_queue(
    features: Tensor, images: Tensor, queue_features: Tensor, queue_images: Tensor
) -> Tensor:
    """Index [n] of the queue's most similar patch (cosine) that is not of the same image.

    -1 where there is none. Features [n, D] and [m, D] have rows of length 1; `queue_images` [m] are
    below 0 where the queue holds nothing.
    """
    with torch.no_grad():
        similarity = features.detach() @ queue_features.T
        barred = (images[:, None] == queue_images) | (queue_images < 0)
        similarity.masked_fill_(barred, -2.0)
        best, index = similarity.max(1)
        return index.masked_fill_(best <= -2.0, -1)


class NeighbourQueue:
    """Embedded patches of recent steps from all workers, the oldest dropped first.

    Nothing in it waits for the device: padding keeps a place, marked by an image number below 0,
    until newer patches push it out.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._features: Tensor | None = None  # [m, D_p]
        self._images: Tensor | None = None  # int64 [m]
        # Rows of all workers in rank order, complete once the collectives are done.
        self._arriving: tuple[Tensor, Tensor, list[dist.Work]] | None = None

    def push(
        self, features: Tensor, images: Tensor, weights: Tensor, most_rows: int | None = None
    ) -> None:
        """Begin to append this step's patches [n, D_p] of all workers (a collective call).

        `images` are the ids of their images, `weights` 0 for padding, and `most_rows` is the
        largest n of all workers; none where it is the same on all. Of several workers each sends
        no more than its share of the capacity.
        """
        self._settle()
        features, images = features.detach(), images.masked_fill(weights <= 0, -1)
        works: list[dist.Work] = []
        if world_size() > 1 and self.capacity:
            assert len(images) <= (most_rows or len(images)), (most_rows, len(images))
            sent = min(most_rows or len(images), -(-self.capacity // world_size()))
            features, images = features[:sent], images[:sent]
            short = sent - len(images)
            features = _begin_gather(F.pad(features, [0, 0, 0, short]), works)
            images = _begin_gather(F.pad(images, [0, short], value=-1), works)
        self._arriving = features, images, works

    def content(self) -> tuple[Tensor, Tensor] | None:
        """Features [m, D_p] and images [m], below 0 where a row holds nothing; None before any."""
        self._settle()
        if self._features is None or self._images is None or len(self._images) == 0:
            return None
        return self._features, self._images

    def state(self) -> dict[str, Tensor]:
        """The queue's tensors for a checkpoint; empty before the first step."""
        self._settle()
        if self._features is None or self._images is None:
            return {}
        real = self._images >= 0
        return {"features": self._features[real], "images": self._images[real]}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self._features, self._images = state.get("features"), state.get("images")
        self._arriving = None

    def _settle(self) -> None:
        """Append what was pushed last."""
        if self._arriving is None:
            return
        features, images, works = self._arriving
        self._arriving = None
        for work in works:
            work.wait()
        if self._features is not None and self._images is not None:
            features = torch.cat([self._features, features])
            images = torch.cat([self._images, images])
        # Padding goes to the front, to be dropped first: how much there is, only the device knows.
        order = torch.argsort((images >= 0).to(torch.uint8), stable=True)
        order = order[max(0, len(images) - self.capacity) :]
        self._features, self._images = features[order], images[order]


def _begin_gather(values: Tensor, works: list[dist.Work]) -> Tensor:
    """The rows of all workers [W · n, …], which arrive once the work added to `works` is done."""
    joined = values.new_empty(world_size() * len(values), *values.shape[1:])
    works.append(_all_gather_single(joined, values.contiguous(), async_op=True))
    return joined
