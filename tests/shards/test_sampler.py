import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.sampler import (
    Order,
    Plan,
    Range,
    batch_counts,
    continue_at,
    epoch_order,
    pieces,
    reader_ranges,
    reader_steps,
    remaining_after,
    split_ranges,
)

counts_strategy = st.lists(st.integers(0, 60), min_size=1, max_size=8)
world = st.integers(1, 5)
workers = st.integers(0, 4)
batch = st.integers(1, 40)


def samples(order: Order, start: int, stop: int) -> list[tuple[int, int]]:
    return [
        (shard, index)
        for shard, indices in pieces(order, start, stop)
        for index in indices.tolist()
    ]


def positions(ranges: list[Range] | tuple[Range, ...]) -> list[int]:
    return [position for start, stop in ranges for position in range(start, stop)]


def read_until(plan: Plan, step: int) -> list[int]:
    """Positions read in the first `step` steps, found reader by reader."""
    found = []
    for rank in range(plan.world_size):
        for reader in range(plan.readers):
            mine = positions(reader_ranges(plan, rank, reader))
            for number, count in reader_steps(plan, rank, reader):
                if number < step:
                    found += mine[:count]
                mine = mine[count:]
    return found


@settings(deadline=None)
@given(counts_strategy, st.integers(-3, 2**63), st.integers(0, 9), st.integers(1, 70))
def test_an_order_holds_every_sample_once(
    counts: list[int], seed: int, epoch: int, block_size: int
) -> None:
    order = epoch_order(counts, seed=seed, epoch=epoch, block_size=block_size)
    expected = [(shard, index) for shard, count in enumerate(counts) for index in range(count)]
    assert sorted(samples(order, 0, order.total)) == expected


@settings(deadline=None)
@given(counts_strategy, st.integers(1, 70), st.data())
def test_any_stretch_of_an_order_can_be_read_alone(
    counts: list[int], block_size: int, data: st.DataObject
) -> None:
    order = epoch_order(counts, seed=1, epoch=2, block_size=block_size)
    start = data.draw(st.integers(0, order.total))
    stop = data.draw(st.integers(start, order.total))
    assert samples(order, start, stop) == samples(order, 0, order.total)[start:stop]


@settings(deadline=None)
@given(counts_strategy, st.integers(1, 70))
def test_blocks_are_bounded_and_move_forward_within_a_shard(
    counts: list[int], block_size: int
) -> None:
    order = epoch_order(counts, seed=3, epoch=0, block_size=block_size)
    last: dict[int, int] = {}
    for shard, indices in pieces(order, 0, order.total):
        low, high = int(indices.min()), int(indices.max())
        assert high - low < block_size
        assert low > last.get(shard, -1)
        last[shard] = high


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        made = epoch_order([500, 300, 400], seed=seed, epoch=epoch, block_size=64)
        return samples(made, 0, made.total)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


EXPECTED = [
    (1, 2),
    (1, 0),
    (1, 1),
    (2, 0),
    (2, 3),
    (2, 1),
    (2, 2),
    (0, 1),
    (0, 0),
    (0, 4),
    (0, 2),
    (0, 3),
]


def test_the_order_does_not_change_between_releases() -> None:
    order = epoch_order([5, 3, 4], seed=7, epoch=1, block_size=4)
    assert samples(order, 0, order.total) == EXPECTED


def test_the_first_block_of_a_shard_ends_elsewhere_in_another_epoch() -> None:
    ends = {int(epoch_order([1000], seed=0, epoch=epoch).start[1]) for epoch in range(8)}
    assert len(ends) > 4


def test_positions_are_evenly_spread_over_a_shuffled_block() -> None:
    order = epoch_order([200] * 50, seed=0, epoch=0, block_size=200)
    first = [int(indices[0]) for _, indices in pieces(order, 0, order.total)]
    assert len(set(first)) > len(first) / 3


@settings(deadline=None)
@given(st.integers(0, 500), world, workers, batch)
def test_a_plan_reads_every_position_once(
    total: int, world_size: int, loader_workers: int, batch_size: int
) -> None:
    plan = split_ranges([(0, total)], world_size, loader_workers, batch_size)
    assert sorted(read_until(plan, plan.steps)) == list(range(total))


@settings(deadline=None)
@given(st.integers(0, 500), world, workers, batch)
def test_batches_are_equal_in_number_and_nearly_in_size(
    total: int, world_size: int, loader_workers: int, batch_size: int
) -> None:
    plan = split_ranges([(0, total)], world_size, loader_workers, batch_size)
    counts = batch_counts(plan)
    per_rank = -(-batch_size // world_size)
    assert counts.shape == (world_size, plan.steps)
    assert plan.steps == math.ceil(math.ceil(total / world_size) / per_rank)
    assert counts.sum() == total
    if counts.size:
        assert counts.max() <= per_rank
        assert all(row.max() - row.min() <= 1 for row in counts)
    for rank in range(world_size):
        steps = dict(
            pair for reader in range(plan.readers) for pair in reader_steps(plan, rank, reader)
        )
        assert [steps[step] for step in range(plan.steps)] == counts[rank].tolist()


def test_a_step_has_the_same_global_batch_whatever_the_number_of_workers() -> None:
    for world_size in (1, 2, 4):
        counts = batch_counts(split_ranges([(0, 4096)], world_size, 2, 256)).sum(axis=0)
        assert counts.tolist() == [256] * 16


def test_with_fewer_samples_than_ranks_some_batches_are_empty() -> None:
    counts = batch_counts(split_ranges([(0, 3)], 5, 0, 256))
    assert counts.shape == (5, 1) and sorted(counts[:, 0].tolist()) == [0, 0, 1, 1, 1]


@settings(deadline=None)
@given(st.integers(0, 400), world, workers, batch, st.data())
def test_what_is_left_and_what_was_read_are_the_whole(
    total: int, world_size: int, loader_workers: int, batch_size: int, data: st.DataObject
) -> None:
    plan = split_ranges([(0, total)], world_size, loader_workers, batch_size)
    step = data.draw(st.integers(0, plan.steps))
    left = positions(remaining_after(plan, step))
    assert sorted(left + read_until(plan, step)) == list(range(total))


@settings(deadline=None)
@given(
    counts_strategy,
    st.tuples(world, world, world),
    st.tuples(workers, workers, workers),
    st.tuples(batch, batch, batch),
    st.data(),
)
def test_two_resumes_with_other_world_sizes_see_each_sample_once(
    counts: list[int],
    worlds: tuple[int, int, int],
    loaders: tuple[int, int, int],
    batches: tuple[int, int, int],
    data: st.DataObject,
) -> None:
    order = epoch_order(counts, seed=5, epoch=1, block_size=16)
    remaining: tuple[Range, ...] = ((0, order.total),)
    seen: Counter[tuple[int, int]] = Counter()
    for number in range(3):
        plan = split_ranges(remaining, worlds[number], loaders[number], batches[number])
        last = number == 2
        step = plan.steps if last else data.draw(st.integers(0, plan.steps))
        for position in read_until(plan, step):
            seen.update(samples(order, position, position + 1))
        remaining = remaining_after(plan, step)
        # what a checkpoint does to it
        remaining = tuple((a, b) for a, b in json.loads(json.dumps(remaining)))
    assert remaining == ()
    assert set(seen.values()) <= {1} and seen.total() == sum(counts)


@given(st.integers(1, 400), world, workers, batch, st.data())
def test_a_plan_that_is_continued_gives_the_batches_that_were_left(
    total: int, world_size: int, loader_workers: int, batch_size: int, data: st.DataObject
) -> None:
    plan = split_ranges([(0, total)], world_size, loader_workers, batch_size)
    step = data.draw(st.integers(0, plan.steps // plan.readers)) * plan.readers
    rest = continue_at(plan, step)
    for rank in range(world_size):
        for reader in range(plan.readers):
            whole = list(reader_steps(plan, rank, reader))
            left = [pair for pair in whole if pair[0] >= step]
            assert list(reader_steps(rest, rank, reader)) == left
            mine = positions(reader_ranges(plan, rank, reader))
            count = sum(size for _, size in left)
            assert positions(reader_ranges(rest, rank, reader)) == mine[len(mine) - count :]


def test_a_plan_goes_on_only_where_a_round_of_readers_ended() -> None:
    plan = split_ranges([(0, 100)], 1, 2, 10)
    with pytest.raises(ValueError, match=r"step is 3; it must be a multiple of 2 loader workers"):
        continue_at(plan, 3)


def test_readers_take_turns_each_on_a_run_of_its_own() -> None:
    plan = split_ranges([(0, 100)], 1, 3, 10)
    assert [step for step, _ in reader_steps(plan, 0, 1)] == [1, 4, 7]
    assert [reader_ranges(plan, 0, reader) for reader in range(3)] == [
        [(0, 40)],
        [(40, 70)],
        [(70, 100)],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([(0, 9)], 0, 0, 8), "world_size is 0"),
        (([(0, 9)], 1, -1, 8), "loader_workers is -1"),
        (([(0, 9)], 1, 0, 0), "batch_size is 0"),
        (([(0, 9), (5, 12)], 1, 0, 8), r"5\.\.12 is negative or read twice"),
        (([(5, 2)], 1, 0, 8), r"5\.\.2 is negative"),
    ],
)
def test_plans_that_make_no_sense_are_refused(
    arguments: tuple[list[Range], int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        split_ranges(*arguments)


def test_a_block_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size is 0; it must be at least 1"):
        epoch_order([3], seed=0, epoch=0, block_size=0)


def test_a_large_epoch_is_ordered_quickly() -> None:
    order = epoch_order([1000] * 1300, seed=0, epoch=0)
    plan = split_ranges([(0, order.total)], 64, 8, 4096)
    assert batch_counts(plan).sum() == 1_300_000
    assert np.all(np.diff(order.start) > 0)
