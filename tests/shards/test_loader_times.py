"""Which part of loading is slow, and what the sentence says about it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.loader import Batches, Cut, LoadTimes, explain_stall, make_loader
from shards.manifest import Manifest
from shards.sampler import order_of, select, split_ranges, start_of
from shards_trees import flat_tree, pack_tree

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SLOW = [
    (LoadTimes(read=8, decode=1, cut=1), 2, True, "80% of theirs waiting for the network: keep s"),
    (LoadTimes(read=8, decode=1, cut=1), 2, False, "waiting for the disk: move the shards"),
    (LoadTimes(read=1, decode=7, cut=2), 2, False, r"JPEGs: raise cluster.loader_w.*2\) if"),
    (LoadTimes(read=1, decode=2, cut=6, idle=1), 4, False, "resizing and copying pictures: raise"),
    (LoadTimes(read=1, decode=2, cut=1, idle=9), 4, False, "handing batches over: pack with"),
    (LoadTimes(read=1, decode=7, cut=2, idle=9), 0, False, "70% of theirs decoding JPEGs: raise"),
]


@pytest.mark.parametrize(("times", "workers", "remote", "message"), SLOW)
def test_the_slowest_part_is_named_with_what_to_change(
    times: LoadTimes, workers: int, remote: bool, message: str
) -> None:
    import re

    sentence = explain_stall(0.4, times, loader_workers=workers, remote=remote)
    assert sentence is not None and "\n" not in sentence
    assert sentence.startswith("training waited for data 40% of the time")
    assert re.search(message, sentence)


def test_a_trainer_that_hardly_waits_is_told_nothing() -> None:
    times = LoadTimes(read=9, decode=1, cut=1)
    assert explain_stall(0.05, times, loader_workers=1, remote=True) is None
    assert explain_stall(0.06, times, loader_workers=1, remote=True) is not None
    assert explain_stall(0.9, LoadTimes(), loader_workers=1, remote=True) is None


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
