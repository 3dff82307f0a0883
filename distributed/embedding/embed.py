"""The embedding pass: every image once, class sums reduced exactly, nearest patches noted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distributed.features.cache import FeatureSpec, Unit, UnitFeatures, read_unit
from distributed.features.extract import patch_features
from shards.objects import ACCESS, Access
from vgse.embeddings import ClassSums, add_images, empty_sums
from vgse.images.backbones import Backbone
from vgse.training.model import ClusterHead


@dataclass(frozen=True)
class Encoder:
    """What turns patches into assignments, and which data it reads."""

    url: str
    folder: str  # feature cache
    spec: FeatureSpec
    num_classes: int
    head: ClusterHead
    start: ClusterHead | None  # the head as k-means left it, to compare with
    backbone: Backbone | None  # None: patch features come from the cache
    device: str
    access: Access = ACCESS


@dataclass(frozen=True)
class TopPatches:
    """For each of K clusters, the m patches it holds most strongly; -1 where there are fewer."""

    score: NDArray[np.float32]  # [K, m], assignment in 0..1
    image: NDArray[np.int64]  # [K, m], row in EmbeddedImages
    patch: NDArray[np.int64]  # [K, m]


@dataclass
class EmbeddedImages:
    """One row an image, in the order of the units."""

    keys: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)  # paths in the data set, "" where not known
    shards: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    rows: list[NDArray[np.int64]] = field(default_factory=list)  # place in the shard
    labels: list[NDArray[np.int64]] = field(default_factory=list)
    features: list[NDArray[np.float16]] = field(default_factory=list)  # [n, D_f]
    assignments: list[NDArray[np.float32]] = field(default_factory=list)  # a_n, [n, D_v]
    strongest: list[NDArray[np.int32]] = field(default_factory=list)  # [n, N]
    scores: list[NDArray[np.float32]] = field(default_factory=list)  # [n, N], of the strongest
    start_assignments: list[NDArray[np.float32]] = field(default_factory=list)


@dataclass
class Embedded:
    """What the pass over some units gave."""

    sums: dict[str, ClassSums]  # split -> sums
    start_sums: dict[str, ClassSums]  # the same at k-means; empty when unknown
    images: EmbeddedImages


def merge(parts: Sequence[Embedded]) -> Embedded:
    """Join the results of disjoint units, adding sums in the order given."""
    joined = Embedded({}, {}, EmbeddedImages())
    for part in parts:
        for own, other in ((joined.sums, part.sums), (joined.start_sums, part.start_sums)):
            for split, sums in other.items():
                own[split] = own[split] + sums if split in own else sums
        for name in EmbeddedImages.__dataclass_fields__:
            getattr(joined.images, name).extend(getattr(part.images, name))
    return joined


@torch.inference_mode()
def embed_units(encoder: Encoder, units: Sequence[Unit]) -> Embedded:
    """Embed all images of some units.

    Sums are float64, so the reduced class embeddings do not depend on how units are dealt out
    beyond rounding of the last bit.
    """
    size = encoder.head.centroids.shape[0]
    result = Embedded({}, {}, EmbeddedImages())
    for unit in units:
        content = read_unit(encoder.folder, unit, encoder.access)
        labels = content.labels.numpy()
        features = _features(encoder, unit, content)  # [n, N, D_f]
        assignments = _assign(encoder.head, features)
        sums = result.sums.setdefault(unit.split, empty_sums(encoder.num_classes, size))
        means = add_images(sums, assignments.numpy(), labels)
        images = result.images
        images.keys += content.keys
        images.sources += content.sources
        images.shards += [unit.shard] * len(labels)
        images.splits += [unit.split] * len(labels)
        images.rows.append(content.rows.numpy().copy())
        images.labels.append(labels.copy())
        images.features.append(content.images.numpy().copy())
        images.assignments.append(means.astype(np.float32))
        score, strongest = assignments.max(2)
        images.strongest.append(strongest.numpy().astype(np.int32))
        images.scores.append(score.numpy())
        if encoder.start is not None:
            before = _assign(encoder.start, features).numpy()
            start = result.start_sums.setdefault(unit.split, empty_sums(encoder.num_classes, size))
            images.start_assignments.append(add_images(start, before, labels).astype(np.float32))
    return result


def _features(encoder: Encoder, unit: Unit, content: UnitFeatures) -> Tensor:
    if encoder.backbone is None:
        return content.patches.float()
    return patch_features(
        encoder.url, unit, encoder.spec, encoder.backbone, encoder.device, encoder.access
    )


def _assign(head: ClusterHead, features: Tensor) -> Tensor:
    count, num_patches, _ = features.shape
    device = head.centroids.device
    flat = head(features.flatten(0, 1).to(device)).float().cpu()
    return flat.view(count, num_patches, -1)


def nearest_patches(
    images: EmbeddedImages,
    classes: NDArray[np.integer],
    clusters: NDArray[np.integer],
    count: int,
) -> TopPatches:
    """The `count` patches of some classes that each of `clusters` holds most strongly.

    At most one patch of an image is taken for a cluster, so that a montage shows variety.
    """
    labels = np.concatenate(images.labels)
    strongest, scores = np.concatenate(images.strongest), np.concatenate(images.scores)
    candidates = np.where(np.isin(labels, classes)[:, None], scores, -1.0)
    top = TopPatches(
        np.zeros((len(clusters), count), np.float32),
        np.full((len(clusters), count), -1, np.int64),
        np.full((len(clusters), count), -1, np.int64),
    )
    for row, cluster in enumerate(clusters):
        own = np.where(strongest == cluster, candidates, -1.0)  # [M, N]
        best_patch = own.argmax(1)
        best = own[np.arange(len(own)), best_patch]
        order = np.argsort(-best, kind="stable")[:count]
        order = order[best[order] > 0]
        top.score[row, : len(order)] = best[order]
        top.image[row, : len(order)] = order
        top.patch[row, : len(order)] = best_patch[order]
    return top
