"""The clustering layer H with its two regressors Q and S, and the loss of one training step."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgse.clusters import Projection
from vgse.config import LossConfig, ModelConfig
from vgse.images.backbones import Backbone
from vgse.training.losses import LOSSES, USES, StepTensors, Uses, sum_assignments
from vgse.training.neighbours import NeighbourQueue, nearest_in_queue


class ClusterHead(nn.Module):
    """Features to cluster assignments: a = softmax(cos(P x, centroids) / τ).

    P starts as a PCA, the centroids [D_v, D_p] start at those of k-means; `classifier` is
    Q [S, D_v] and `regressor` is S [D_w, D_v].
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


@dataclass
class StepOutput:
    """What a step gives: the loss to differentiate, and detached values to log."""

    loss: Tensor  # scalar
    terms: dict[str, Tensor]  # loss name -> detached scalar, this worker's share
    cells: Tensor  # int64 [n], class · D_v + strongest cluster of each patch
    weights: Tensor  # [n], 0 for padding


class TrainingModel(nn.Module):
    """Backbone, head and losses as one module, so that DDP sees a single forward."""

    word_vectors: Tensor

    def __init__(
        self, backbone: Backbone | None, head: ClusterHead, word_vectors: Tensor, config: LossConfig
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
        embedded, output = self.losses_of(features, labels, images, weights, total_images)
        if self.training and self._uses("neighbours"):
            most_rows = None if most_images is None else most_images * num_patches
            self.queue.push(
                embedded, images.repeat_interleave(num_patches), output.weights, most_rows
            )
        return output

    def features(self, inputs: Tensor) -> Tensor:
        """Features float32 [B · N, D_f] of what `forward` takes as inputs."""
        flat = inputs.flatten(0, 1)
        return flat.float() if self.backbone is None else self.backbone(flat)

    def losses_of(
        self, features: Tensor, labels: Tensor, images: Tensor, weights: Tensor, total_images: int
    ) -> tuple[Tensor, StepOutput]:
        """Embedded patches [n, D_p] and the loss of features [n, D_f]; the queue is only read.

        The other arguments are those of `forward`, for each image.
        """
        num_patches = len(features) // len(labels)
        labels, images, weights = (
            values.repeat_interleave(num_patches) for values in (labels, images, weights)
        )
        head = self.head
        embedded = head.embed(features)
        assignments = head.assign(embedded)
        # Begun first and needed last: it travels while the rest is computed.
        everywhere = sum_assignments(assignments, weights) if self._uses("mean") else None
        logits, predicted = head.classifier(assignments), head.regressor(assignments)
        content = self.queue.content() if self._uses("neighbours") else None
        neighbours: tuple[Tensor, ...] = ()
        if content is not None:
            index = nearest_in_queue(embedded, images, *content)
            neighbours = head.assign(content[0][index.clamp_min(0)]), index >= 0
        step = StepTensors(
            embedded,
            assignments,
            logits,
            predicted,
            labels,
            self.word_vectors[labels],
            weights,
            total_images * num_patches,
            everywhere,
            *neighbours,
        )
        # A loss of weight 0 is left out, but its layer stays in the graph for DDP.
        loss = 0.0 * (logits.sum() + predicted.sum())
        terms = {name: compute(step) for name, compute in LOSSES.items() if self._weight(name)}
        for name, term in terms.items():
            loss = loss + self._weight(name) * term
        cells = labels * assignments.shape[1] + assignments.detach().argmax(1)
        detached = {name: term.detach() for name, term in terms.items()}
        return embedded, StepOutput(loss, detached, cells, weights)

    def _weight(self, loss: str) -> float:
        return float(getattr(self.config, loss))

    def _uses(self, what: Uses) -> bool:
        return any(self._weight(name) and what in USES[name] for name in LOSSES)
