"""The order in which an epoch sees its samples: a pure function of counts, seed and epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZE = 256


@dataclass(frozen=True)
class Order:
    """Positions 0..T-1 of an epoch, block by block.

    Block b holds `start[b + 1] - start[b]` consecutive samples of shard `shard[b]`, from
    index `first[b]` on; the samples are permuted inside it.
    """

    shard: NDArray[np.int64]  # [num_blocks]
    first: NDArray[np.int64]  # [num_blocks]
    start: NDArray[np.int64]  # [num_blocks + 1]
    seed: int
    epoch: int
    shuffle: bool

    @property
    def total(self) -> int:
        """T, the number of positions."""
        return int(self.start[-1])


@dataclass(frozen=True)
class Piece:
    """Samples of one block, in the order of the epoch: `indices` [n] within `shard`."""

    shard: int
    indices: NDArray[np.int64]


def epoch_order(
    shard_counts: Sequence[int],
    *,
    seed: int,
    epoch: int,
    block_size: int = BLOCK_SIZE,
    shuffle: bool = True,
) -> Order:
    """The order of one epoch over shards of the given counts.

    Shards come in an order drawn from (seed, epoch), their samples in blocks of block_size
    that are permuted inside, so that reading moves forward within a shard and a reader
    holds one block. Where the first block of a shard ends is drawn, too: two samples that
    share a block in one epoch need not do so in the next. Without `shuffle` positions count
    through the shards as they are.

    Raises:
        ValueError: block_size < 1.
    """
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    counts = np.asarray(shard_counts, np.int64)
    shards = np.arange(len(counts))
    heads = np.full(len(counts), block_size)
    if shuffle:
        shards = np.argsort(_hash(seed, epoch, 0, shards), kind="stable")
        heads = 1 + (_hash(seed, epoch, 1, np.arange(len(counts))) % block_size).astype(np.int64)
    shard, first = [], []
    for index in shards.tolist():
        count, head = int(counts[index]), int(heads[index])
        cuts = [0, *range(head, count, block_size)] if count else []
        shard += [index] * len(cuts)
        first += cuts
    shard_of, first_of = np.array(shard, np.int64), np.array(first, np.int64)
    # A block ends where the next one of its shard begins, or with the shard.
    last = np.append(shard_of[1:] != shard_of[:-1], True)[: len(shard_of)]
    ends = np.where(last, counts[shard_of], np.append(first_of[1:], 0)[: len(first_of)])
    start = np.concatenate([[0], np.cumsum(ends - first_of)])
    return Order(shard_of, first_of, start, seed, epoch, shuffle)


def pieces(order: Order, start: int, stop: int) -> Iterator[Piece]:
    """The samples at positions start to stop - 1, in order, a piece for each block."""
    assert 0 <= start <= stop <= order.total, (start, stop, order.total)
    block = int(np.searchsorted(order.start, start, side="right")) - 1
    while start < stop:
        begin, end = int(order.start[block]), int(order.start[block + 1])
        indices = order.first[block] + np.arange(end - begin)
        if order.shuffle:
            draws = _hash(order.seed, order.epoch, 2 + int(order.shard[block]), indices)
            indices = indices[np.argsort(draws, kind="stable")]
        yield Piece(int(order.shard[block]), indices[start - begin : min(stop, end) - begin])
        start = min(stop, end)
        block += 1


def _hash(seed: int, epoch: int, stream: int, values: NDArray[np.int64]) -> NDArray[np.uint64]:
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
