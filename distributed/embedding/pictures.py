"""Pictures for the report, gathered from the shards into `pictures.npz`."""

from collections.abc import Iterable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from distributed.embedding.embed import EmbeddedImages
from distributed.features.cache import access_of
from distributed.features.extract import whole_picture
from distributed.setup import Prepared
from shards.manifest import Manifest
from shards.objects import Access
from shards.samples import DamagedImage, Sample, decode_sample, plan_parts, read_parts
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
    """Some samples of the shards; damaged ones are left out."""
    places = set(wanted)
    pieces = ((manifest.shards.find(file), np.array([row])) for file, row in sorted(places))
    found: dict[Wanted, Sample] = {}
    for raw in read_parts(manifest, plan_parts(pieces, manifest.stride), access=access):
        if (raw.shard, raw.index) in places:
            with suppress(DamagedImage):
                found[raw.shard, raw.index] = decode_sample(raw, manifest)
    return found


def nearest_patches(
    images: EmbeddedImages, classes: NDArray[np.integer], clusters: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The patches of some classes that each of K clusters holds most strongly, at most one of an
    image: rows of `images` and numbers of patches, [K, MONTAGE_PATCHES], -1 where there are fewer.
    """
    candidates = np.where(np.isin(images.labels, classes)[:, None], images.scores, -1.0)
    rows, patches = (np.full((len(clusters), MONTAGE_PATCHES), -1, np.int64) for _ in range(2))
    for place, cluster in enumerate(clusters):
        own = np.where(images.strongest == cluster, candidates, -1.0)  # [M, N]
        best_patch = own.argmax(1)
        best = own[np.arange(len(own)), best_patch]
        order = np.argsort(-best, kind="stable")[:MONTAGE_PATCHES]
        order = order[best[order] > 0]
        rows[place, : len(order)] = order
        patches[place, : len(order)] = best_patch[order]
    return rows, patches


def gather_pictures(
    config: RunConfig, prepared: Prepared, images: EmbeddedImages
) -> dict[str, NDArray[np.generic]]:
    """The arrays of pictures.npz: montages of the most used clusters, a picture of each class, and
    a sample of patches. Memory is bounded by what the report shows."""
    manifest, strongest, labels = prepared.manifest, images.strongest, images.labels
    patches_of = np.bincount(strongest.ravel(), minlength=config.model.num_clusters)
    usage = patches_of / max(1, strongest.size)
    shown = np.argsort(-usage, kind="stable")[:MONTAGE_CLUSTERS]
    shown = shown[usage[shown] > 0]
    montages = {
        name: nearest_patches(images, classes, shown)
        for name, classes in (("seen", prepared.seen), ("unseen", prepared.unseen))
    }
    random = np.random.default_rng(config.seed)
    portraits = np.full(len(manifest.class_names), -1, np.int64)  # an image of each class
    present, first = np.unique(labels, return_index=True)
    portraits[present] = first
    sampled = np.sort(random.permutation(strongest.size)[:MAP_PATCHES])
    map_image, map_patch = np.divmod(sampled, strongest.shape[1])

    places: list[Wanted] = list(zip(images.shards, images.rows.tolist(), strict=True))
    needed = np.concatenate(
        [portraits, map_image, *(rows.ravel() for rows, _ in montages.values())]
    )
    wanted = [places[i] for i in needed if i >= 0]
    samples = read_pictures(manifest, wanted, access_of(config.data))

    def picture(image: int, side: int, patch: int | None = None) -> NDArray[np.uint8]:
        """White where the image is missing or damaged; of the whole image without `patch`."""
        sample = samples.get(places[image]) if image >= 0 else None
        if sample is None:
            return np.full((side, side, 3), 255, np.uint8)
        if patch is None:
            return whole_picture(sample.image, side)
        return cut_patches_opencv(sample.image, sample.boxes[patch : patch + 1], side)[0]

    names = np.array(manifest.class_names)
    arrays: dict[str, NDArray[np.generic]] = {
        "cluster_ids": shown,
        "cluster_mass": usage[shown].astype(np.float32),
        "cluster_usage": usage.astype(np.float32),
        "class_pictures": np.stack([picture(int(i), _CLASS_SIDE) for i in portraits]),
        "tsne_features": images.assignments[map_image],
        "tsne_cluster": strongest[map_image, map_patch].astype(np.int64),
        "tsne_class": names[labels[map_image]],
        "tsne_pictures": np.stack(
            [picture(int(i), _MAP_SIDE, int(n)) for i, n in zip(map_image, map_patch, strict=True)]
        ),
    }
    for name, (rows, patches) in montages.items():
        flat = zip(rows.ravel().tolist(), patches.ravel().tolist(), strict=True)
        montage = np.stack([picture(image, _PATCH_SIDE, number) for image, number in flat])
        arrays[f"cluster_{name}"] = montage.reshape(*rows.shape, *montage.shape[1:])
        arrays[f"cluster_{name}_class"] = np.where(rows >= 0, names[labels[rows]], "")
    return arrays
