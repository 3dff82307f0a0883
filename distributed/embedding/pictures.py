"""Pictures for the report, gathered from the shards into `pictures.npz`."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distributed.embedding.embed import EmbeddedImages
from distributed.features.cache import access_of
from distributed.features.extract import whole_picture
from distributed.setup import Prepared
from shards.manifest import Manifest
from shards.objects import Access
from shards.samples import DamagedImage, Sample, decode_sample, label_index, read_parts
from shards.source import plan_parts
from vgse.config import RunConfig
from vgse.images.patches import cut_patches_opencv

MONTAGE_CLUSTERS = 48
MONTAGE_PATCHES = 8
MAP_PATCHES = 1200
_PATCH_SIDE, _CLASS_SIDE, _MAP_SIDE = 64, 72, 32

Wanted = tuple[str, int]  # shard file, place in the shard


def read_pictures(
    manifest: Manifest, wanted: Iterable[Wanted], access: Access
) -> dict[Wanted, Sample]:
    """Some samples of the shards; damaged ones are left out.

    What lies between two of them is read, too, where that saves reading a run of samples twice.
    """
    chosen = sorted(set(wanted))
    shards = {shard.file: shard for shard in manifest.shards}
    pieces = ((shards[file], np.array([row])) for file, row in chosen)
    parts = plan_parts(pieces, manifest.stride)
    labels, places = label_index(manifest), set(chosen)
    found: dict[Wanted, Sample] = {}
    for raw in read_parts(manifest, parts, access=access):
        if (raw.shard, raw.index) not in places:
            continue
        with suppress(DamagedImage):
            found[raw.shard, raw.index] = decode_sample(raw, labels, manifest.num_patches)
    return found


@dataclass(frozen=True)
class TopPatches:
    """For each of K clusters, the m patches it holds most strongly; -1 where there are fewer."""

    score: NDArray[np.float32]  # [K, m], assignment in 0..1
    image: NDArray[np.int64]  # [K, m], row in EmbeddedImages
    patch: NDArray[np.int64]  # [K, m]


def nearest_patches(
    images: EmbeddedImages,
    classes: NDArray[np.integer],
    clusters: NDArray[np.integer],
    count: int,
) -> TopPatches:
    """The `count` patches of some classes that each of `clusters` holds most strongly.

    At most one patch of an image is taken for a cluster, so that a montage shows variety.
    """
    candidates = np.where(np.isin(images.labels, classes)[:, None], images.scores, -1.0)
    top = TopPatches(
        np.zeros((len(clusters), count), np.float32),
        np.full((len(clusters), count), -1, np.int64),
        np.full((len(clusters), count), -1, np.int64),
    )
    for row, cluster in enumerate(clusters):
        own = np.where(images.strongest == cluster, candidates, -1.0)  # [M, N]
        best_patch = own.argmax(1)
        best = own[np.arange(len(own)), best_patch]
        order = np.argsort(-best, kind="stable")[:count]
        order = order[best[order] > 0]
        top.score[row, : len(order)] = best[order]
        top.image[row, : len(order)] = order
        top.patch[row, : len(order)] = best_patch[order]
    return top


def gather_pictures(
    config: RunConfig, prepared: Prepared, images: EmbeddedImages
) -> dict[str, NDArray[np.generic]]:
    """Montages of the most used clusters, a picture of each class, and a sample of patches.

    Returns the arrays of pictures.npz. Memory is bounded by what the report shows, not by the data.
    """
    manifest, strongest, labels = prepared.manifest, images.strongest, images.labels
    num_clusters = config.model.num_clusters
    usage = np.bincount(strongest.ravel(), minlength=num_clusters) / max(1, strongest.size)
    shown = np.argsort(-usage, kind="stable")[:MONTAGE_CLUSTERS]
    shown = shown[usage[shown] > 0]
    montages = {
        name: nearest_patches(images, classes, shown, MONTAGE_PATCHES)
        for name, classes in (("seen", prepared.seen), ("unseen", prepared.unseen))
    }
    random = np.random.default_rng(config.seed)
    portraits = _one_of_each(labels, len(manifest.class_names))
    sampled = np.sort(random.permutation(strongest.size)[:MAP_PATCHES])
    map_image, map_patch = np.divmod(sampled, strongest.shape[1])

    places: list[Wanted] = list(zip(images.shards, images.rows.tolist(), strict=True))
    needed = {int(i) for top in montages.values() for i in top.image[top.image >= 0]}
    needed |= {int(i) for i in portraits if i >= 0} | set(map_image.tolist())
    samples = read_pictures(manifest, (places[i] for i in needed), access_of(config.data))

    def sample_of(image: int) -> Sample | None:
        return samples.get(places[image]) if image >= 0 else None

    def patch(image: int, number: int, side: int) -> NDArray[np.uint8]:
        if (sample := sample_of(image)) is None:
            return np.full((side, side, 3), 255, np.uint8)
        return cut_patches_opencv(sample.image, sample.boxes[number : number + 1], side)[0]

    def class_picture(image: int) -> NDArray[np.uint8]:
        if (sample := sample_of(image)) is None:
            return np.full((_CLASS_SIDE, _CLASS_SIDE, 3), 255, np.uint8)
        return whole_picture(sample.image, _CLASS_SIDE)

    names = np.array(manifest.class_names)
    arrays: dict[str, NDArray[np.generic]] = {
        "cluster_ids": shown,
        "cluster_mass": usage[shown].astype(np.float32),
        "cluster_usage": usage.astype(np.float32),
        "class_pictures": np.stack([class_picture(int(i)) for i in portraits]),
        "tsne_features": images.assignments[map_image],
        "tsne_cluster": strongest[map_image, map_patch].astype(np.int64),
        "tsne_class": names[labels[map_image]],
        "tsne_pictures": np.stack(
            [patch(int(i), int(n), _MAP_SIDE) for i, n in zip(map_image, map_patch, strict=True)]
        ),
    }
    for name, top in montages.items():
        arrays[f"cluster_{name}"] = _montage(top, patch)
        arrays[f"cluster_{name}_class"] = np.where(top.image >= 0, names[labels[top.image]], "")
    return arrays


def _montage(
    top: TopPatches, patch: Callable[[int, int, int], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    rows = [
        np.stack([patch(int(i), int(n), _PATCH_SIDE) for i, n in zip(images, places, strict=True)])
        for images, places in zip(top.image, top.patch, strict=True)
    ]
    return np.stack(rows)


def _one_of_each(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    first = np.full(num_classes, -1, np.int64)
    present, index = np.unique(labels, return_index=True)
    first[present] = index
    return first
