"""The clustering layer H with its two regressors Q and S, and the loss of one training step."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vgse.clusters import Projection
from vgse.config import LossConfig, ModelConfig
from vgse.images.backbones import Backbone
from vgse.training import losses


class ClusterHead(nn.Module):
    """Features to cluster assignments: a = softmax(cos(P x, centroids) / τ).

    P is a projection that starts as a PCA, the centroids [D_v, D_p] start at those of k-means.
    `classifier` is Q [S, D_v] and `regressor` is S [D_w, D_v].
    """

    def __init__(
        self, config: ModelConfig, num_features: int, num_classes: int, word_size: int
    ) -> None:
        super().__init__()
        size = config.projection or num_features
        self.temperature = config.temperature
        self.projection = nn.Linear(num_features, size) if config.projection else None
        if self.projection is not None:
            self.projection.requires_grad_(config.train_projection)
        self.centroids = nn.Parameter(F.normalize(torch.randn(config.num_clusters, size), dim=1))
        self.classifier = nn.Linear(config.num_clusters, num_classes)
        self.regressor = nn.Linear(config.num_clusters, word_size)

    @torch.no_grad()
    def start(self, projection: Projection | None, centroids: Tensor | None) -> None:
        """Set the projection and the prototypes to what `vgse.clusters` found."""
        if projection is not None:
            assert self.projection is not None
            self.projection.weight.copy_(torch.from_numpy(projection.weight))
            self.projection.bias.copy_(torch.from_numpy(projection.bias))
        if centroids is not None:
            self.centroids.copy_(centroids)

    def embed(self, features: Tensor) -> Tensor:
        """Projected features of length 1: [n, D_f] -> [n, D_p]."""
        projected = features if self.projection is None else self.projection(features)
        return F.normalize(projected.float(), dim=1)

    def assign(self, embedded: Tensor) -> Tensor:
        """Assignments of embedded patches: [n, D_p] -> [n, D_v], rows that sum to 1."""
        # A small τ would turn bfloat16's rounding of the cosine into a tenth of a logit.
        with torch.autocast(embedded.device.type, enabled=False):
            cosine = embedded @ F.normalize(self.centroids, dim=1).T
            return torch.softmax(cosine / self.temperature, dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Assignments [n, D_v] of features [n, D_f]."""
        return self.assign(self.embed(features))


class NeighbourQueue:
    """Embedded patches of recent steps from all workers, the oldest dropped first.

    Neighbours are sought here, so that streaming needs no random access to the data. Nothing in
    it waits for the device: padding keeps a place, marked by an image number below 0, until
    newer patches push it out.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._features: Tensor | None = None  # [m, D_p]
        self._images: Tensor | None = None  # int64 [m]
        self._arriving: _Arriving | None = None

    def push(
        self, features: Tensor, images: Tensor, weights: Tensor, most_rows: int | None = None
    ) -> None:
        """Begin to append this step's patches of all workers (a collective call).

        Args:
            features: [n, D_p], rows of length 1.
            images: int64 [n], an id of each patch's image.
            weights: [n], 0 for padding.
            most_rows: the largest n of all workers; none where it is the same on all.
        """
        self._settle()
        images = images.masked_fill(weights <= 0, -1)
        rows = most_rows if losses.world_size() > 1 else None
        self._arriving = _gather(features.detach(), images, rows or len(images))

    def content(self) -> tuple[Tensor, Tensor] | None:
        """Features [m, D_p] and images [m] of the queue, or None while it holds nothing.

        Rows whose image number is below 0 hold nothing.
        """
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
        for work in self._arriving.works:
            work.wait()
        features, images = self._arriving.features, self._arriving.images
        self._arriving = None
        if self._features is not None and self._images is not None:
            features = torch.cat([self._features, features])
            images = torch.cat([self._images, images])
        # Padding goes to the front, to be dropped first: how much there is, only the device knows.
        order = torch.argsort((images >= 0).to(torch.uint8), stable=True)
        order = order[max(0, len(images) - self.capacity) :]
        self._features, self._images = features[order], images[order]


@dataclass(frozen=True)
class _Arriving:
    """Rows of all workers, in rank order; complete once `works` are done."""

    features: Tensor  # [W · rows, D_p]
    images: Tensor  # int64 [W · rows]
    works: list[dist.Work]


def _gather(features: Tensor, images: Tensor, rows: int) -> _Arriving:
    """Begin to gather the rows of all workers, each padded to `rows`."""
    if losses.world_size() == 1:
        return _Arriving(features, images, [])
    short = rows - len(images)
    assert short >= 0, (rows, len(images))
    works: list[dist.Work] = []

    def begin(values: Tensor) -> Tensor:
        joined = values.new_empty(losses.world_size() * rows, *values.shape[1:])
        parts = list(joined.chunk(losses.world_size()))
        works.append(dist.all_gather(parts, values, async_op=True))
        return joined

    padded = F.pad(images, [0, short], value=-1)
    return _Arriving(begin(F.pad(features, [0, 0, 0, short])), begin(padded), works)


@dataclass
class StepOutput:
    """What a step gives: the loss to differentiate, and detached figures to log."""

    loss: Tensor  # scalar
    terms: dict[str, Tensor]  # loss name -> detached scalar, this worker's share
    cells: Tensor  # int64 [n], class · D_v + strongest cluster of each patch
    weights: Tensor  # [n], 0 for padding


class TrainingModel(nn.Module):
    """Backbone, head and losses as one module, so that DDP sees a single forward."""

    word_vectors: Tensor

    def __init__(
        self,
        backbone: Backbone | None,
        head: ClusterHead,
        word_vectors: Tensor,
        config: LossConfig,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.config = config
        self.queue = NeighbourQueue(config.queue_size)
        self.register_buffer("word_vectors", word_vectors, persistent=False)  # [S, D_w]

    def forward(
        self,
        inputs: Tensor,
        labels: Tensor,
        images: Tensor,
        weights: Tensor,
        total_images: int,
        *,
        most_images: int | None = None,
        earlier: Tensor | None = None,
    ) -> StepOutput:
        """The loss of one step.

        Args:
            inputs: patches uint8 [B, N, 3, P, P], or features [B, N, D_f] of a frozen backbone.
            labels: int64 [B], in 0..S-1.
            images: int64 [B], an id of each image.
            weights: [B], 0 for padding and 1 otherwise.
            total_images: images of the step over all workers.
            most_images: the largest B of all workers; none where it is the same on all.
            earlier: features [n, D_f] of the first images; `inputs` then holds the others.
        """
        num_patches = inputs.shape[1]
        features = self.features(inputs)
        if earlier is not None:
            features = torch.cat([earlier, features])
        labels, images, weights = (
            values.repeat_interleave(num_patches) for values in (labels, images, weights)
        )
        total = total_images * num_patches
        embedded, output = self.losses_of(features, labels, images, weights, total)
        if self.training and self.config.consistency:
            most_rows = None if most_images is None else most_images * num_patches
            self.queue.push(embedded, images, weights, most_rows)
        return output

    def features(self, inputs: Tensor) -> Tensor:
        """Features float32 [B · N, D_f] of what `forward` takes as inputs."""
        flat = inputs.flatten(0, 1)
        return flat.float() if self.backbone is None else self.backbone(flat)

    def losses_of(
        self, features: Tensor, labels: Tensor, images: Tensor, weights: Tensor, total: int
    ) -> tuple[Tensor, StepOutput]:
        """Embedded patches [n, D_p] and the loss of features [n, D_f].

        Labels, images and weights are given for each patch, `total` counts the patches of the
        step over all workers. The queue is read and left as it is.
        """
        config, head = self.config, self.head
        embedded = head.embed(features)
        assignments = head.assign(embedded)
        # Begun first and needed last: it travels while the rest is computed.
        everywhere = losses.sum_assignments(assignments, weights) if config.entropy else None
        terms: dict[str, Tensor] = {}
        # A loss of weight 0 is left out, but its layer stays in the graph for DDP.
        logits, predicted = head.classifier(assignments), head.regressor(assignments)
        loss = 0.0 * (logits.sum() + predicted.sum())
        if config.classification:
            terms["classification"] = losses.classification_loss(logits, labels, weights, total)
        if config.semantic:
            words = self.word_vectors[labels]
            terms["semantic"] = losses.semantic_loss(predicted, words, weights, total)
        if config.consistency:
            terms["consistency"] = self._consistency(embedded, assignments, images, weights, total)
        if everywhere is not None:
            terms["entropy"] = losses.entropy_of(everywhere.mean(total))
        for name, term in terms.items():
            loss = loss + getattr(config, name) * term
        cells = labels * assignments.shape[1] + assignments.detach().argmax(1)
        detached = {name: term.detach() for name, term in terms.items()}
        return embedded, StepOutput(loss, detached, cells, weights)

    def _consistency(
        self, embedded: Tensor, assignments: Tensor, images: Tensor, weights: Tensor, total: int
    ) -> Tensor:
        content = self.queue.content()
        if content is None:
            return 0.0 * assignments.sum()
        features, queue_images = content
        index = losses.nearest_in_queue(embedded, images, features, queue_images)
        neighbours = self.head.assign(features[index.clamp_min(0)])
        found = weights * (index >= 0)
        return losses.consistency_loss(assignments, neighbours, found, total)
