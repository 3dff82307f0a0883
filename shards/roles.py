"""Roles of classes that are given at run time: the same shards with other unseen classes."""

import hashlib
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shards.datasets.classes import draw_count, read_names, require_known
from shards.manifest import SPLITS, TRAINING_OF_UNSEEN, Manifest, load_labels
from shards.sampler import hash_values
from vgse.errors import UserError

_log = logging.getLogger(__name__)
_TRAIN, _TEST_SEEN, _TEST_UNSEEN = range(3)  # of SPLITS


@dataclass(frozen=True)
class Roles:
    """Who is unseen, and who of the others is for validation."""

    unseen: tuple[str, ...]
    val: tuple[str, ...]


def asked_roles(
    manifest: Manifest, unseen: Sequence[str] | str | None, seed: int | None
) -> Roles | None:
    """The roles that a configuration asks for; None where they are the manifest's own.

    `unseen` are names or a file of names; without them `seed` draws as many as the manifest has.
    The validation classes, the same share of the seen ones as there, are always drawn.
    """
    if unseen is None and seed is None:
        return None
    where = "data.unseen"
    if unseen is None:
        assert seed is not None
        drawn = draw_count(manifest.class_names, len(manifest.unseen), seed, "unseen")
        chosen = tuple(drawn)
    else:
        # An é may be one sign or two, in the list and in the names of older shards.
        spelled = {unicodedata.normalize("NFC", name): name for name in manifest.class_names}
        asked = read_names(unseen) if isinstance(unseen, str) else unseen
        chosen = tuple(
            sorted({spelled.get(unicodedata.normalize("NFC", name), name) for name in asked})
        )
        where = unseen if isinstance(unseen, str) else where
    require_known(chosen, manifest.class_names, f"{where}: unseen classes")
    own = {manifest.class_names[label] for label in manifest.unseen}
    if seed is None and set(chosen) == own:
        return None
    seen = sorted(set(manifest.class_names) - set(chosen))
    if not chosen or len(seen) < 2:
        raise UserError(
            f"{where}: {len(chosen)} unseen and {len(seen)} seen classes; "
            "name at least one, and leave at least two"
        )
    lacking, joining = manifest.left_out.get(TRAINING_OF_UNSEEN, 0), own.difference(chosen)
    if lacking and joining:
        _log.warning(
            "%s: without %d training images of the classes that were unseen when it was packed, of "
            "which %d are seen now; shards packed with --all_unseen true have them",
            *(manifest.url, lacking, len(joining)),
        )
    share = len(manifest.val) / max(1, len(manifest.seen))
    val = draw_count(seen, max(1, round(share * len(seen))), seed or 0, "val")
    return Roles(chosen, tuple(val))


def with_roles(manifest: Manifest, roles: Roles | None) -> Manifest:
    """The manifest with these roles; it reads labels.npy, and no shard.

    Images of a class that stays on its side stay in their split. All images of one that is now
    unseen are test_unseen. Those of one that is now seen are divided by a hash of their place in
    the shards, which their key belongs to, with the share of test_seen among the stored ones.
    """
    if roles is None:
        return manifest
    role = dict.fromkeys(roles.val, "val") | dict.fromkeys(roles.unseen, "unseen")
    classes = [replace(entry, role=role.get(entry.name, "train")) for entry in manifest.classes]
    labels = load_labels(manifest)
    splits = _divide(manifest, labels, [manifest.labels[name] for name in roles.unseen])
    names, counts = manifest.class_names, {}
    for number, split in enumerate(SPLITS):
        found = np.bincount(labels[splits == number], minlength=len(names))
        counts[split] = {name: int(n) for name, n in zip(names, found, strict=True) if n}
    digest = hashlib.sha256(repr((manifest.fingerprint, roles)).encode()).hexdigest()
    return replace(
        manifest,
        classes=classes,
        class_counts=counts,
        fingerprint=digest,
        table=manifest.shards,
        splits=splits,
    )


def _divide(
    manifest: Manifest, labels: NDArray[np.unsignedinteger], unseen: Sequence[int]
) -> NDArray[np.uint8]:
    """The split of every sample [T], given labels [T] and the classes that are unseen now."""
    records = manifest.shards.records
    splits: NDArray[np.uint8] = np.repeat(records["split"], records["count"])
    splits[np.isin(labels, unseen)] = _TEST_UNSEEN
    num_train, num_test = (manifest.num_images(split) for split in SPLITS[:2])
    joining = np.setdiff1d(manifest.unseen, unseen)
    moved = np.flatnonzero(np.isin(labels, joining))
    edges = np.concatenate([[0], np.cumsum(manifest.shards.counts)])
    shard = np.searchsorted(edges, moved, side="right") - 1
    draws = np.empty(len(moved), np.uint64)
    for number in np.unique(shard):
        own = shard == number
        stream = int(manifest.shards.keys[number])
        draws[own] = hash_values(0, 0, stream, moved[own] - edges[number])
    for label in joining:
        mine = labels[moved] == label
        own = moved[mine][np.argsort(draws[mine], kind="stable")]
        count = min(max(1, round(num_test / (num_train + num_test) * len(own))), len(own) - 1)
        splits[own] = _TRAIN
        splits[own[:count]] = _TEST_SEEN
    return splits
