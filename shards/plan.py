"""Who reads what: remaining positions of an epoch over ranks, steps and loader workers.

All functions are pure. A position is a place in the epoch's order (order.py); ranges are
half-open. Stopping after any step leaves ranges that can be planned again for another
number of ranks and workers, so that each position is read exactly once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Range = tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """`remaining` positions in `steps` steps for `world_size` ranks, each with loader workers."""

    remaining: tuple[Range, ...]
    world_size: int
    loader_workers: int
    steps: int
    first_step: int = 0
    """Steps before this one were done already: `continue_at` sets it."""

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

    Every rank takes J = ceil(ceil(T / W) / ceil(global_batch_size / W)) steps, over which
    its part is spread evenly, so that the sizes of its batches differ by one at most; where
    T / W is small, a rank's batch can be empty. A step never holds more than
    W * ceil(global_batch_size / W) images.

    Raises:
        ValueError: numbers below 1 (workers below 0), or ranges that overlap.
    """
    for name, value, least in (
        ("world_size", world_size, 1),
        ("loader_workers", loader_workers, 0),
        ("batch_size", global_batch_size, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    ranges = _merge(remaining)
    total = sum(stop - start for start, stop in ranges)
    steps = _ceil(_ceil(total, world_size), _ceil(global_batch_size, world_size))
    return Plan(ranges, world_size, loader_workers, steps)


def continue_at(plan: Plan, step: int) -> Plan:
    """The same plan with its first `step` steps done: what is left keeps its batches.

    Raises:
        ValueError: a step outside of 0..J, or one at which the readers of a rank, which take
            turns, would go on in another order.
    """
    if not 0 <= step <= plan.steps or step % plan.readers:
        raise ValueError(
            f"step is {step}; it must be a multiple of {plan.readers} loader workers in "
            f"0..{plan.steps}"
        )
    return replace(plan, first_step=step)


def batch_counts(plan: Plan) -> NDArray[np.int64]:
    """Images of each rank in each step, [W, J]; the column sums are the global batches."""
    steps = np.arange(plan.steps)
    batch = _batch_index(plan, steps)
    counts = np.empty((plan.world_size, plan.steps), np.int64)
    for rank in range(plan.world_size):
        low, high = _rank_span(plan, rank)
        size = high - low
        counts[rank] = (batch + 1) * size // max(1, plan.steps) - batch * size // max(1, plan.steps)
    return counts


def reader_ranges(plan: Plan, rank: int, reader: int) -> list[Range]:
    """The positions that a reader of a rank goes through, in the order of its batches."""
    first, count = _reader_batches(plan, reader)
    low = _edge(plan, rank, first + _done(plan, reader, plan.first_step))
    return _cut(plan.remaining, low, _edge(plan, rank, first + count))


def reader_steps(plan: Plan, rank: int, reader: int) -> Iterator[tuple[int, int]]:
    """(step, number of images) of each batch of a reader; readers take turns, as in torch."""
    first, count = _reader_batches(plan, reader)
    for number in range(_done(plan, reader, plan.first_step), count):
        low = _edge(plan, rank, first + number)
        high = _edge(plan, rank, first + number + 1)
        yield reader + number * plan.readers, high - low


def remaining_after(plan: Plan, step: int) -> tuple[Range, ...]:
    """What is left once all ranks have finished `step` steps of the plan (0 to J)."""
    if not 0 <= step <= plan.steps:
        raise ValueError(f"step is {step}; the plan has 0 to {plan.steps} steps")
    left: list[Range] = []
    for rank in range(plan.world_size):
        for reader in range(plan.readers):
            first, count = _reader_batches(plan, reader)
            done = _done(plan, reader, step)
            low, high = _edge(plan, rank, first + done), _edge(plan, rank, first + count)
            left += _cut(plan.remaining, low, high)
    return _merge(left)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _merge(ranges: Sequence[Range]) -> tuple[Range, ...]:
    merged: list[Range] = []
    for start, stop in sorted((int(a), int(b)) for a, b in ranges):
        if start < 0 or stop < start or (merged and start < merged[-1][1]):
            raise ValueError(f"remaining range {start}..{stop} is negative or read twice")
        if merged and start == merged[-1][1]:
            merged[-1] = (merged[-1][0], stop)
        elif start < stop:
            merged.append((start, stop))
    return tuple(merged)


def _cut(ranges: Sequence[Range], low: int, high: int) -> list[Range]:
    """Ranges of the low-th to high-th position when all ranges are laid end to end."""
    found = []
    for start, stop in ranges:
        size = stop - start
        if low < size and high > 0:
            found.append((start + max(low, 0), start + min(high, size)))
        low, high = low - size, high - size
    return [(start, stop) for start, stop in found if start < stop]


def _rank_span(plan: Plan, rank: int) -> Range:
    total = plan.total
    return rank * total // plan.world_size, (rank + 1) * total // plan.world_size


def _edge(plan: Plan, rank: int, batch: int) -> int:
    """Where a rank's batch begins, counted through all remaining positions."""
    low, high = _rank_span(plan, rank)
    return low + batch * (high - low) // max(1, plan.steps)


def _reader_batches(plan: Plan, reader: int) -> tuple[int, int]:
    """First batch and number of batches of a reader: a contiguous run of the rank's batches."""
    sizes = [_ceil(plan.steps - r, plan.readers) for r in range(plan.readers)]
    sizes = [max(0, size) for size in sizes]
    return sum(sizes[:reader]), sizes[reader]


def _done(plan: Plan, reader: int, step: int) -> int:
    """Batches that a reader has given once `step` steps are finished."""
    _, count = _reader_batches(plan, reader)
    return min(count, max(0, _ceil(step - reader, plan.readers)))


def _batch_index(plan: Plan, steps: NDArray[np.int64]) -> NDArray[np.int64]:
    firsts = np.array([_reader_batches(plan, r)[0] for r in range(plan.readers)])
    return firsts[steps % plan.readers] + steps // plan.readers
