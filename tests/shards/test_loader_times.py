"""Batches carry where their reader's time went."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.loader import Batches, Cut, LoadTimes, make_loader
from shards.manifest import Manifest
from shards.sampler import order_of, select, split_ranges, start_of
from shards_trees import flat_tree, pack_tree

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root: Path = tmp_path_factory.mktemp("health")
    flat_tree(root / "set", images=40)
    return pack_tree(root / "set", root / "out", images_per_shard=50)


def measure(manifest: Manifest, loader_workers: int, pause: float) -> Iterator[LoadTimes]:
    selection = select(manifest, "train")
    cursor = start_of(manifest, selection, seed=3)
    plan = split_ranges(cursor.remaining, 1, loader_workers, 32)
    batches = Batches(manifest, selection, order_of(cursor, selection), plan, 0, Cut("images", 64))
    for batch in make_loader(batches):
        time.sleep(pause)
        yield batch.times


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_batches_carry_the_time_of_each_part(packed: Manifest, loader_workers: int) -> None:
    started = time.perf_counter()
    found = list(measure(packed, loader_workers, 0.0))
    wall = time.perf_counter() - started
    whole = sum(found, LoadTimes())
    assert len(found) > 3 and min(whole.read, whole.decode, whole.cut) > 0
    assert whole.busy < wall


def test_the_trainers_step_counts_as_idle(packed: Manifest) -> None:
    quick, slow = (sum(measure(packed, 0, pause), LoadTimes()) for pause in (0.0, 0.05))
    steps = len(list(measure(packed, 0, 0.0)))
    assert slow.idle > 0.05 * (steps - 1) > quick.idle
