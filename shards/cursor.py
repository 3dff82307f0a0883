"""Which samples of a split a run uses, and how far into an epoch it is."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.entries import ShardEntry
from shards.manifest import Manifest, load_labels
from shards.order import BLOCK_SIZE, Order, epoch_order
from shards.plan import Range

VERSION = 1
_REMEDY = "start a new run with another --run-id"


@dataclass(frozen=True)
class Selection:
    """Shards, and the indices of the samples in use of each (None: all of them)."""

    shards: list[ShardEntry]
    indices: list[NDArray[np.int64] | None]

    @property
    def counts(self) -> list[int]:
        """Samples in use of each shard."""
        return [
            shard.count if chosen is None else len(chosen)
            for shard, chosen in zip(self.shards, self.indices, strict=True)
        ]


def select(manifest: Manifest, split: str, classes: Collection[int] | None = None) -> Selection:
    """All samples of a split, or those whose label is among `classes`.

    Leaving classes out reads labels.npy, no shard. Raises ValueError if nothing is left.
    """
    shards = manifest.shards_of(split)
    chosen: list[NDArray[np.int64] | None] = [None] * len(shards)
    names = None if classes is None else {manifest.class_names[index] for index in classes}
    if names is not None and any(set(shard.class_counts) - names for shard in shards):
        labels = load_labels(manifest)
        wanted = np.array(sorted(set(classes or ())), np.int64)
        chosen = [np.flatnonzero(np.isin(labels[shard.file], wanted)) for shard in shards]
    selection = Selection(shards, chosen)
    if not sum(selection.counts):
        raise ValueError(f"{manifest.url}: no images in split {split} for the classes asked for")
    return selection


@dataclass(frozen=True)
class Cursor:
    """A place in an epoch, to be saved in a checkpoint: what is still to be read."""

    epoch: int
    remaining: tuple[Range, ...]
    seed: int
    block_size: int
    total: int
    fingerprint: str
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON."""
        return {**asdict(self), "remaining": [list(pair) for pair in self.remaining]}


def start_of(
    manifest: Manifest,
    selection: Selection,
    *,
    seed: int,
    epoch: int = 0,
    block_size: int = BLOCK_SIZE,
) -> Cursor:
    """The cursor at the beginning of an epoch."""
    total = sum(selection.counts)
    return Cursor(epoch, ((0, total),), seed, block_size, total, manifest.fingerprint)


def restore(state: dict[str, Any], manifest: Manifest, selection: Selection) -> Cursor:
    """The cursor of a checkpoint; refused by ValueError if it belongs to other data."""
    if state.get("version") != VERSION:
        raise ValueError(
            f"checkpoint: data cursor version is {state.get('version')!r}, "
            f"this program reads {VERSION}; {_REMEDY}"
        )
    try:
        cursor = Cursor(**{**state, "remaining": tuple((a, b) for a, b in state["remaining"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint: damaged data cursor ({error}); {_REMEDY}") from None
    total = sum(selection.counts)
    if cursor.fingerprint != manifest.fingerprint or cursor.total != total:
        raise ValueError(
            f"checkpoint: its data cursor belongs to other shards ({cursor.total} images) than "
            f"{manifest.url} ({total}); point data.shards to those or {_REMEDY}"
        )
    return cursor


def order_of(cursor: Cursor, selection: Selection, *, shuffle: bool = True) -> Order:
    """The order of the cursor's epoch."""
    return epoch_order(
        selection.counts,
        seed=cursor.seed,
        epoch=cursor.epoch,
        block_size=cursor.block_size,
        shuffle=shuffle,
    )
