"""A run that stops anywhere and goes on with other numbers of workers sees each image once."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.loader import Batch, Batches, Cut, make_loader
from shards.manifest import Manifest
from shards.sampler import (
    Cursor,
    Plan,
    Selection,
    batch_counts,
    order_of,
    remaining_after,
    restore,
    select,
    split_ranges,
    start_of,
)
from shards.samples import read_raw
from shards_trees import flat_tree, pack_tree

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("resume")
    flat_tree(root / "set", images=20)
    return pack_tree(root / "set", root / "out", images_per_shard=25)


def train_classes(manifest: Manifest) -> Selection:
    """Some classes only, so that samples of a shard are left out."""
    return select(manifest, "train", sorted(set(manifest.seen) - set(manifest.val)))


def expected_keys(manifest: Manifest, selection: Selection) -> Counter[str]:
    found: Counter[str] = Counter()
    for row, shard in enumerate(selection.shards):
        keep = selection.stored(row, np.arange(selection.counts[row])).tolist()
        found.update(raw.key for raw in read_raw(manifest, shard) if raw.index in keep)
    return found


def take(
    manifest: Manifest, selection: Selection, cursor: Cursor, plan: Plan, stop: int
) -> list[list[Batch]]:
    """The first `stop` batches of each rank; the loader is then left in the middle, as by a kill
    with batches read ahead that nobody trains on."""
    order = order_of(cursor, selection)
    taken: list[list[Batch]] = []
    for rank in range(plan.world_size):
        loader = iter(
            make_loader(Batches(manifest, selection, order, plan, rank, Cut("images", 8)))
        )
        taken.append([next(loader) for _ in range(stop)])
        if stop == plan.steps:
            assert next(loader, None) is None
    return taken


def go_through(
    manifest: Manifest, stages: list[tuple[int, int, int]], shares: list[float]
) -> Counter[str]:
    """Keys seen by stages (world size, loader workers, batch size) that each stop after a share
    of their plan, the last one at its end."""
    selection = train_classes(manifest)
    cursor = start_of(manifest, selection, seed=11, epoch=2, block_size=16)
    seen: Counter[str] = Counter()
    for number, (world_size, loader_workers, batch_size) in enumerate(stages):
        plan = split_ranges(cursor.remaining, world_size, loader_workers, batch_size)
        last = number + 1 == len(stages)
        stop = plan.steps if last else int(shares[number] * plan.steps)
        taken = take(manifest, selection, cursor, plan, stop)
        counts = batch_counts(plan)[:, :stop]
        assert [[len(batch) for batch in rank] for rank in taken] == counts.tolist()
        seen.update(key for rank in taken for batch in rank for key in batch.keys)
        state = json.loads(
            json.dumps(replace(cursor, remaining=remaining_after(plan, stop)).to_dict())
        )
        cursor = restore(state, manifest, selection)
    assert cursor.remaining == ()
    return seen


def test_one_two_and_three_workers_with_loader_processes_see_each_image_once(
    packed: Manifest,
) -> None:
    seen = go_through(packed, [(1, 2, 4), (2, 1, 4), (3, 1, 4)], [0.3, 0.6])
    assert seen == expected_keys(packed, train_classes(packed))


stage = st.tuples(st.integers(1, 3), st.just(0), st.integers(1, 30))


@settings(deadline=None, max_examples=20)
@given(st.lists(stage, min_size=2, max_size=5), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_any_stops_and_any_workers_see_each_image_once(
    packed: Manifest, stages: list[tuple[int, int, int]], shares: list[float]
) -> None:
    assert go_through(packed, stages, shares) == expected_keys(packed, train_classes(packed))


def test_a_cursor_that_forgets_a_step_would_be_seen(packed: Manifest) -> None:
    selection = train_classes(packed)
    cursor = start_of(packed, selection, seed=11, block_size=16)
    plan = split_ranges(cursor.remaining, 1, 0, 8)
    early = take(packed, selection, cursor, plan, 3)
    late = replace(cursor, remaining=remaining_after(plan, 2))
    rest = split_ranges(late.remaining, 2, 0, 8)
    found = early + take(packed, selection, late, rest, rest.steps)
    seen = Counter(key for rank in found for batch in rank for key in batch.keys)
    assert seen != expected_keys(packed, selection) and max(seen.values()) == 2
