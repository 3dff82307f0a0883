"""The order in which an epoch sees its samples: a pure function of counts, seed and epoch."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.manifest import SPLITS, Manifest, ShardTable, load_labels
from vgse.errors import UserError

BLOCK_SIZE = 256


@dataclass(frozen=True)
class Order:
    """Positions 0..T-1 of an epoch. Block b holds `start[b + 1] - start[b]` consecutive samples of
    shard `shard[b]`, from index `first[b]` on, permuted inside it."""

    shard: NDArray[np.int64]  # [num_blocks]
    first: NDArray[np.int64]  # [num_blocks]
    start: NDArray[np.int64]  # [num_blocks + 1]
    seed: int
    epoch: int
    block_size: int

    @property
    def total(self) -> int:
        """T, the number of positions."""
        return int(self.start[-1])


def epoch_order(
    shard_counts: ArrayLike, *, seed: int, epoch: int, block_size: int = BLOCK_SIZE
) -> Order:
    """The order of one epoch over shards of the given counts.

    Shards come in an order drawn from (seed, epoch), their samples in permuted blocks, so that
    reading moves forward within a shard and a reader holds one block. Where the first block of a
    shard ends is drawn, too: two samples that share a block in one epoch need not in the next.
    """
    if block_size < 1:
        raise UserError(f"block_size is {block_size}; it must be at least 1")
    counts = np.asarray(shard_counts, np.int64)
    indices = np.arange(len(counts))
    heads = 1 + (hash_values(seed, epoch, 1, indices) % block_size).astype(np.int64)
    drawn = np.argsort(hash_values(seed, epoch, 0, indices), kind="stable")
    counts, heads = counts[drawn], heads[drawn]
    blocks = np.where(counts > 0, 1 + np.maximum(0, -(-(counts - heads) // block_size)), 0)
    row = np.repeat(indices, blocks)
    number = np.arange(len(row)) - (np.cumsum(blocks) - blocks)[row]  # of a block in its shard
    first = np.where(number > 0, heads[row] + (number - 1) * block_size, 0)
    end = np.minimum(heads[row] + number * block_size, counts[row])
    start = np.concatenate([[0], np.cumsum(end - first)])
    return Order(drawn[row], first, start, seed, epoch, block_size)


def pieces(order: Order, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The samples at positions start to stop - 1: shard and indices [n] of each block, in order."""
    assert 0 <= start <= stop <= order.total, (start, stop, order.total)
    block = int(np.searchsorted(order.start, start, side="right")) - 1
    while start < stop:
        begin, end = int(order.start[block]), int(order.start[block + 1])
        indices = order.first[block] + np.arange(end - begin)
        shard = int(order.shard[block])
        draws = hash_values(order.seed, order.epoch, 2 + shard, indices)
        indices = indices[np.argsort(draws, kind="stable")]
        yield shard, indices[start - begin : min(stop, end) - begin]
        start = min(stop, end)
        block += 1


def hash_values(
    seed: int, epoch: int, stream: int, values: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Well-mixed 64 bits for each value: the same on every machine and NumPy release."""
    state = np.zeros_like(values, np.uint64)
    mask = (1 << 64) - 1
    for part in (seed & mask, epoch & mask, stream & mask, values.astype(np.uint64)):
        # splitmix64: Steele, Lea and Flood, OOPSLA 2014
        state = state + np.uint64(0x9E3779B97F4A7C15) ^ np.asarray(part, np.uint64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


Range = tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """`remaining` positions in `steps` steps for `world_size` ranks, each with loader workers."""

    remaining: tuple[Range, ...]
    world_size: int
    loader_workers: int
    steps: int
    first_step: int = 0  # steps before this one were done already: `continue_at` sets it

    @property
    def total(self) -> int:
        """T, the number of positions to be read."""
        return sum(stop - start for start, stop in self.remaining)

    @property
    def readers(self) -> int:
        """Readers of a rank: its loader workers, or the rank itself where there are none."""
        return max(1, self.loader_workers)


def split_ranges(
    remaining: Sequence[Range], world_size: int, loader_workers: int, global_batch_size: int
) -> Plan:
    """Plan the remaining positions: contiguous, nearly equal parts for the ranks.

    Every rank takes J = ceil(ceil(T / W) / ceil(global_batch_size / W)) steps, over which its part
    is spread evenly: the sizes of its batches differ by one at most, and some can be empty.
    """
    values = {"world_size": world_size, "batch_size": global_batch_size}
    for name, value in {**values, "loader_workers": loader_workers}.items():
        if value < (least := int(name != "loader_workers")):
            raise UserError(f"{name} is {value}; it must be at least {least}")
    ranges = _merge(remaining)
    total = sum(stop - start for start, stop in ranges)
    steps = _ceil(_ceil(total, world_size), _ceil(global_batch_size, world_size))
    return Plan(ranges, world_size, loader_workers, steps)


def continue_at(plan: Plan, step: int) -> Plan:
    """The same plan with its first `step` steps done; `step` must end a round of the readers."""
    if not 0 <= step <= plan.steps or step % plan.readers:
        raise UserError(
            f"step is {step}; it must be a multiple of {plan.readers} loader workers in "
            f"0..{plan.steps}"
        )
    return replace(plan, first_step=step)


def batch_counts(plan: Plan) -> NDArray[np.int64]:
    """Images of each rank in each step, [W, J]; the column sums are the global batches."""
    counts = np.zeros((plan.world_size, plan.steps), np.int64)
    whole = replace(plan, first_step=0)
    for rank in range(plan.world_size):
        for reader in range(plan.readers):
            for step, count in reader_steps(whole, rank, reader):
                counts[rank, step] = count
    return counts


def reader_ranges(plan: Plan, rank: int, reader: int) -> list[Range]:
    """The positions that a reader of a rank goes through, in the order of its batches."""
    edges = _reader_edges(plan, rank, reader, plan.first_step)
    return _cut(plan.remaining, edges[0], edges[-1])


def reader_steps(plan: Plan, rank: int, reader: int) -> Iterator[tuple[int, int]]:
    """(step, number of images) of each batch of a reader; readers take turns, as in torch."""
    edges = _reader_edges(plan, rank, reader, plan.first_step)
    last = reader + _ceil(plan.steps - reader, plan.readers) * plan.readers
    steps = range(last - (len(edges) - 1) * plan.readers, last, plan.readers)
    return ((step, high - low) for step, (low, high) in zip(steps, pairwise(edges), strict=True))


def remaining_after(plan: Plan, step: int) -> tuple[Range, ...]:
    """What is left once all ranks have finished `step` steps of the plan (0 to J)."""
    if not 0 <= step <= plan.steps:
        raise UserError(f"step is {step}; the plan has 0 to {plan.steps} steps")
    left: list[Range] = []
    for rank in range(plan.world_size):
        for reader in range(plan.readers):
            edges = _reader_edges(plan, rank, reader, step)
            left += _cut(plan.remaining, edges[0], edges[-1])
    return _merge(left)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _merge(ranges: Sequence[Range]) -> tuple[Range, ...]:
    merged: list[Range] = []
    for start, stop in sorted((int(a), int(b)) for a, b in ranges):
        if start < 0 or stop < start or (merged and start < merged[-1][1]):
            raise UserError(f"remaining range {start}..{stop} is negative or read twice")
        if merged and start == merged[-1][1]:
            merged[-1] = (merged[-1][0], stop)
        elif start < stop:
            merged.append((start, stop))
    return tuple(merged)


def _cut(ranges: Sequence[Range], low: int, high: int) -> list[Range]:
    """Ranges of the low-th to high-th position when all ranges are laid end to end."""
    found = []
    for start, stop in ranges:
        begin, end = start + max(low, 0), min(start + high, stop)
        if begin < end:
            found.append((begin, end))
        low, high = low - (stop - start), high - (stop - start)
    return found


def _reader_edges(plan: Plan, rank: int, reader: int, step: int) -> list[int]:
    """Where the batches that a reader has left after `step` steps begin, and the last one ends,
    counted through all remaining positions; its batches are a contiguous run of its rank's."""
    sizes = [max(0, _ceil(plan.steps - r, plan.readers)) for r in range(plan.readers)]
    first, count = sum(sizes[:reader]), sizes[reader]
    done = min(count, max(0, _ceil(step - reader, plan.readers)))
    total, world_size = plan.total, plan.world_size
    low, high = rank * total // world_size, (rank + 1) * total // world_size
    batches = range(first + done, first + count + 1)
    return [low + batch * (high - low) // max(1, plan.steps) for batch in batches]


VERSION = 1
_REMEDY = "start a new run with another --run-id"


@dataclass(frozen=True)
class Selection:
    """Shards, and which of their samples are in use [T] (None: all)."""

    shards: ShardTable
    in_use: NDArray[np.bool_] | None = None

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Samples in use of each shard [K]."""
        if self.in_use is None:
            return self.shards.counts
        edges = pairwise(self._edges.tolist())
        counts = [np.count_nonzero(self.in_use[start:stop]) for start, stop in edges]
        return np.array(counts, np.int64)

    @property
    def total(self) -> int:
        """How many samples are in use."""
        return int(self.counts.sum())

    @cached_property
    def _edges(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.shards.counts)])

    def places(self, shard: int) -> NDArray[np.int64] | None:
        """Places in a shard of its samples in use; None where all are."""
        if self.in_use is None:
            return None
        start, stop = self._edges[shard : shard + 2]
        return np.flatnonzero(self.in_use[start:stop])

    def stored(self, shard: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places in a shard of some of its samples in use, given by their numbers among those."""
        places = self.places(shard)
        return indices if places is None else places[indices]


def samples_of(manifest: Manifest, split: str) -> Selection:
    """All samples of a split, if there are any."""
    if manifest.splits is None:
        return Selection(manifest.shards_of(split))
    return Selection(manifest.shards, manifest.splits == SPLITS.index(split))


def select(manifest: Manifest, split: str, classes: Collection[int] | None = None) -> Selection:
    """All samples of a split, or those whose label is among `classes` (by labels.npy)."""
    selection = samples_of(manifest, split)
    names = None if classes is None else {manifest.class_names[index] for index in classes}
    counts = manifest.class_counts[split]
    if names is not None and any(n for name, n in counts.items() if name not in names):
        wanted = np.zeros(len(manifest.classes), bool)
        wanted[list(classes or ())] = True
        labels = load_labels(manifest)
        if selection.in_use is None:
            edges = np.concatenate([[0], np.cumsum(manifest.shards.counts)])
            rows = manifest.shards.split_rows(split)
            labels = labels[edges[rows.start] : edges[rows.stop]]
        in_use = np.empty(len(labels), bool)
        for start in range(0, len(labels), 1 << 20):  # indexing makes eight bytes of each label
            in_use[start : start + (1 << 20)] = wanted[labels[start : start + (1 << 20)]]
        if selection.in_use is not None:
            in_use &= selection.in_use
        selection = replace(selection, in_use=in_use)
    if not selection.total:
        raise UserError(f"{manifest.url}: no images in split {split} for the classes asked for")
    return selection


@dataclass(frozen=True)
class Cursor:
    """What of an epoch is still to be read, as a checkpoint holds it."""

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
    total = selection.total
    return Cursor(epoch, ((0, total),), seed, block_size, total, manifest.fingerprint)


def restore(state: dict[str, Any], manifest: Manifest, selection: Selection) -> Cursor:
    """The cursor of a checkpoint; refused if it belongs to other data."""
    if state.get("version") != VERSION:
        raise UserError(
            f"checkpoint: data cursor version is {state.get('version')!r}, "
            f"this program reads {VERSION}; {_REMEDY}"
        )
    try:
        cursor = Cursor(**{**state, "remaining": tuple((a, b) for a, b in state["remaining"])})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"checkpoint: damaged data cursor ({error}); {_REMEDY}") from None
    total = selection.total
    if cursor.fingerprint != manifest.fingerprint or cursor.total != total:
        raise UserError(
            f"checkpoint: its data cursor belongs to other shards ({cursor.total} images) than "
            f"{manifest.url} ({total}); point data.shards to those or {_REMEDY}"
        )
    return cursor


def order_of(cursor: Cursor, selection: Selection) -> Order:
    """The order of the cursor's epoch."""
    seed, epoch, block_size = cursor.seed, cursor.epoch, cursor.block_size
    return epoch_order(selection.counts, seed=seed, epoch=epoch, block_size=block_size)
