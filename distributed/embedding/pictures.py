"""Pictures for the report, gathered from the shards into `pictures.npz`."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distributed.embedding.files import Embedded, EmbeddedImages
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


@dataclass(frozen=True)
class Patch:
    """A patch that the report shows."""

    place: Wanted  # of its image
    label: int
    patch: int
    score: float  # its assignment, in 0..1


def nearest_patches(
    images: EmbeddedImages, classes: NDArray[np.integer], clusters: NDArray[np.integer]
) -> list[list[Patch]]:
    """The patches of some classes that each of K clusters holds most strongly, at most one of an
    image, K times up to MONTAGE_PATCHES, the strongest first."""
    candidates = np.where(np.isin(images.labels, classes)[:, None], images.scores, -1.0)
    found = []
    for cluster in clusters:
        own = np.where(images.strongest == cluster, candidates, -1.0)  # [M, N]
        best_patch = own.argmax(1)
        best = own[np.arange(len(own)), best_patch]
        order = np.argsort(-best, kind="stable")[:MONTAGE_PATCHES]
        chosen = order[best[order] > 0]
        found.append([_patch(images, int(i), int(best_patch[i]), float(best[i])) for i in chosen])
    return found


def _patch(images: EmbeddedImages, row: int, patch: int, score: float = 0.0) -> Patch:
    return Patch((images.shards[row], int(images.rows[row])), int(images.labels[row]), patch, score)


def gather_pictures(
    config: RunConfig, prepared: Prepared, embedded: Embedded
) -> dict[str, NDArray[np.generic]]:
    """The arrays of pictures.npz: montages of the most used clusters, a picture of each class, and
    a sample of patches. Memory is bounded by what the report shows."""
    manifest = prepared.manifest
    patches_of = np.sum([own.contingency.sum(0) for own in embedded.sums.values()], axis=0)
    total = int(patches_of.sum())
    usage = patches_of / max(1, total)
    shown = np.argsort(-usage, kind="stable")[:MONTAGE_CLUSTERS]
    shown = shown[usage[shown] > 0]
    random = np.random.default_rng(config.seed)
    sampled = np.sort(random.choice(total, min(total, MAP_PATCHES), replace=False))

    montages: dict[str, list[list[Patch]]] = {}
    portraits: dict[int, Patch] = {}  # an image of each class
    mapped: list[Patch] = []
    mapped_rows: list[tuple[NDArray[np.float32], NDArray[np.int32]]] = []
    before = 0  # patches of the parts that are done
    for images in embedded.parts:
        for name, classes in (("seen", prepared.seen), ("unseen", prepared.unseen)):
            nearest = nearest_patches(images, classes, shown)
            pairs = zip(montages.get(name, [[]] * len(shown)), nearest, strict=True)
            montages[name] = [  # stable: of equal ones the first
                sorted(old + new, key=lambda patch: -patch.score)[:MONTAGE_PATCHES]
                for old, new in pairs
            ]
        present, first = np.unique(images.labels, return_index=True)
        for label, row in zip(present.tolist(), first.tolist(), strict=True):
            portraits.setdefault(label, _patch(images, row, 0))
        size, number = images.strongest.size, images.strongest.shape[1]
        own = sampled[(sampled >= before) & (sampled < before + size)] - before
        rows, patches = np.divmod(own, number)
        mapped += [_patch(images, int(i), int(n)) for i, n in zip(rows, patches, strict=True)]
        mapped_rows.append((images.assignments[rows], images.strongest[rows, patches]))
        before += size

    needed = [*mapped, *portraits.values()]
    needed += [patch for rows in montages.values() for row in rows for patch in row]
    samples = read_pictures(manifest, [patch.place for patch in needed], access_of(config.data))

    def picture(chosen: Patch | None, side: int, *, whole: bool = False) -> NDArray[np.uint8]:
        """White where the image is missing or damaged."""
        sample = samples.get(chosen.place) if chosen else None
        if chosen is None or sample is None:
            return np.full((side, side, 3), 255, np.uint8)
        if whole:
            return whole_picture(sample.image, side)
        boxes = sample.boxes[chosen.patch : chosen.patch + 1]
        return cut_patches_opencv(sample.image, boxes, side)[0]

    names = np.array(manifest.class_names)
    arrays: dict[str, NDArray[np.generic]] = {
        "cluster_ids": shown,
        "cluster_mass": usage[shown].astype(np.float32),
        "cluster_usage": usage.astype(np.float32),
        "class_pictures": np.stack(
            [picture(portraits.get(label), _CLASS_SIDE, whole=True) for label in range(len(names))]
        ),
        "tsne_features": np.concatenate([assignments for assignments, _ in mapped_rows]),
        "tsne_cluster": np.concatenate([own for _, own in mapped_rows]).astype(np.int64),
        "tsne_class": names[[patch.label for patch in mapped]],
        "tsne_pictures": np.stack([picture(patch, _MAP_SIDE) for patch in mapped]),
    }
    for name, montage in montages.items():
        full = [[*row, *[None] * (MONTAGE_PATCHES - len(row))] for row in montage]
        arrays[f"cluster_{name}"] = np.stack(
            [np.stack([picture(patch, _PATCH_SIDE) for patch in row]) for row in full]
        )
        arrays[f"cluster_{name}_class"] = np.array(
            [[names[patch.label] if patch else "" for patch in row] for row in full]
        )
    return arrays
