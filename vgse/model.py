"""The clustering layer H with its two regressors Q and S, and the loss of one training step."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vgse import losses
from vgse.backbones import Backbone
from vgse.clusters import Projection
from vgse.config import LossConfig, ModelConfig


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

    Neighbours are sought here, so that streaming needs no random access to the data.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.features: Tensor | None = None  # [m, D_p]
        self.images: Tensor | None = None  # int64 [m]

    def push(self, features: Tensor, images: Tensor, weights: Tensor) -> None:
        """Append this step's patches of all workers (a collective call)."""
        features, images = features.detach(), images.clone()
        keep = weights > 0
        if losses.world_size() > 1:
            features, images, keep = _gather_rows(features, images, keep)
        features, images = features[keep], images[keep]
        if self.features is not None and self.images is not None:
            features = torch.cat([self.features, features])
            images = torch.cat([self.images, images])
        first = max(0, len(images) - self.capacity)
        self.features, self.images = features[first:], images[first:]

    def state(self) -> dict[str, Tensor]:
        """The queue's tensors for a checkpoint; empty before the first step."""
        if self.features is None or self.images is None:
            return {}
        return {"features": self.features, "images": self.images}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.features, self.images = state.get("features"), state.get("images")


def _gather_rows(features: Tensor, images: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of all workers, in rank order; workers may hold different numbers of rows."""
    size = torch.tensor([len(images)], device=images.device)
    sizes = [torch.empty_like(size) for _ in range(losses.world_size())]
    dist.all_gather(sizes, size)
    counts = [int(s) for s in sizes]
    most = max(counts)

    def gather(rows: Tensor) -> Tensor:
        padded = F.pad(rows, [0, 0] * (rows.dim() - 1) + [0, most - len(rows)])
        out = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(out, padded)
        return torch.cat([part[:count] for part, count in zip(out, counts, strict=True)])

    return gather(features), gather(images), gather(keep.to(torch.uint8)).bool()


@dataclass
class StepOutput:
    """What a step gives: the loss to differentiate, and detached figures to log."""

    loss: Tensor  # scalar
    terms: dict[str, Tensor]  # loss name -> detached scalar, this worker's share
    usage: Tensor  # int64 [D_v], patches by their strongest cluster
    contingency: Tensor  # int64 [n], class · D_v + strongest cluster, of the real patches


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
        self, inputs: Tensor, labels: Tensor, images: Tensor, weights: Tensor, total_images: int
    ) -> StepOutput:
        """The loss of one step.

        Args:
            inputs: patches uint8 [B, N, 3, P, P], or features [B, N, D_f] of a frozen backbone.
            labels: int64 [B], in 0..S-1.
            images: int64 [B], an id of each image.
            weights: [B], 0 for padding and 1 otherwise.
            total_images: images of the step over all workers.
        """
        num_patches = inputs.shape[1]
        flat = inputs.flatten(0, 1)
        features = flat.float() if self.backbone is None else self.backbone(flat)
        labels = labels.repeat_interleave(num_patches)
        images = images.repeat_interleave(num_patches)
        weights = weights.repeat_interleave(num_patches)
        total = total_images * num_patches

        embedded = self.head.embed(features)
        assignments = self.head.assign(embedded)
        config, head = self.config, self.head
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
        if config.entropy:
            terms["entropy"] = losses.entropy_loss(assignments, weights, total)
        for name, term in terms.items():
            loss = loss + getattr(config, name) * term
        strongest = assignments.detach().argmax(1)
        cells = (labels * assignments.shape[1] + strongest)[weights > 0]
        usage = torch.bincount(strongest[weights > 0], minlength=assignments.shape[1])
        return StepOutput(loss, {k: v.detach() for k, v in terms.items()}, usage, cells)

    def _consistency(
        self, embedded: Tensor, assignments: Tensor, images: Tensor, weights: Tensor, total: int
    ) -> Tensor:
        queue = self.queue
        if queue.features is None or queue.images is None or len(queue.images) == 0:
            term = 0.0 * assignments.sum()
        else:
            index = losses.nearest_in_queue(embedded, images, queue.features, queue.images)
            neighbours = self.head.assign(queue.features[index.clamp_min(0)])
            found = weights * (index >= 0)
            term = losses.consistency_loss(assignments, neighbours, found, total)
        if self.training:
            queue.push(embedded, images, weights)
        return term
