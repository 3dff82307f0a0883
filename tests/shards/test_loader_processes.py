"""Loader processes hold what loading needs, last through the training and end with it; and no
memory grows from epoch to epoch."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.loader import Batch, Batches, Cut, make_loader
from shards.manifest import Manifest
from shards.sampler import Cursor, order_of, remaining_after, select, split_ranges, start_of
from shards_trees import flat_tree, pack_tree

ROOT = Path(__file__).resolve().parents[2]
WORKERS, SIZE = 2, 10

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SCRIPT = """
import os, signal, sys
import scipy.sparse
print("this script runs", flush=True)
from pathlib import Path
from shards.loader import Batches, Cut, make_loader
from shards.manifest import load_manifest
from shards.sampler import order_of, select, split_ranges, start_of
manifest = load_manifest(sys.argv[1])
selection = select(manifest, "train")
cursor = start_of(manifest, selection, seed=0)
plan = split_ranges(cursor.remaining, 1, 1, 10)
batches = Batches(manifest, selection, order_of(cursor, selection), plan, 0, Cut("images", 8))
loader = iter(make_loader(batches))
next(loader)
import multiprocessing
(child,) = multiprocessing.active_children()
maps = Path("/proc", str(child.pid), "maps").read_text()
server = Path("/proc", str(child.pid), "stat").read_text().rpartition(")")[2].split()[1]
print("/scipy/" in maps, "libtorch" in maps, child.pid, server, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("processes")
    flat_tree(root / "set", images=40)
    return pack_tree(root / "set", root / "out", images_per_shard=50)


def begin(manifest: Manifest, epoch: int) -> Cursor:
    return start_of(manifest, select(manifest, "train"), seed=3, epoch=epoch, block_size=16)


def batches_of(manifest: Manifest, cursor: Cursor, workers: int) -> Batches:
    selection = select(manifest, "train")
    plan = split_ranges(cursor.remaining, 1, workers, SIZE)
    return Batches(manifest, selection, order_of(cursor, selection), plan, 0, Cut("images", 8))


def keys(manifest: Manifest, cursor: Cursor, workers: int) -> list[list[str]]:
    """The batches that fresh processes give."""
    return [batch.keys for batch in make_loader(batches_of(manifest, cursor, workers))]


def children() -> set[int | None]:
    gc.collect()
    return {process.pid for process in multiprocessing.active_children()}


def epochs(manifest: Manifest, first: Cursor, count: int) -> Iterator[list[list[str]]]:
    """Epochs of one loader, the first of them from a cursor."""
    batches = batches_of(manifest, first, WORKERS)
    loader = make_loader(batches)
    for number in range(count):
        cursor = first if not number else begin(manifest, first.epoch + number)
        plan = split_ranges(cursor.remaining, 1, WORKERS, SIZE)
        batches.begin(order_of(cursor, batches.selection), plan)
        yield [batch.keys for batch in loader]


def test_the_same_processes_give_every_epoch_as_fresh_ones_would(packed: Manifest) -> None:
    before, pids = children(), set()
    for epoch, found in enumerate(epochs(packed, begin(packed, 0), 3)):
        pids |= children() - before
        assert found == keys(packed, begin(packed, epoch), WORKERS)
    assert len(pids) == WORKERS
    assert children() == before


def test_after_a_resume_within_an_epoch_whole_ones_follow(packed: Manifest) -> None:
    whole = begin(packed, 4)
    plan = split_ranges(whole.remaining, 2, 1, SIZE)
    rest = replace(whole, remaining=remaining_after(plan, 3))
    assert len(rest.remaining) == 2
    first, second = epochs(packed, rest, 2)
    assert first == keys(packed, rest, WORKERS)
    assert second == keys(packed, begin(packed, 5), WORKERS)


def test_an_epoch_that_is_left_in_the_middle_disturbs_no_other(packed: Manifest) -> None:
    batches = batches_of(packed, begin(packed, 0), WORKERS)
    loader = make_loader(batches)
    assert next(iter(loader)).step == 0
    cursor = begin(packed, 1)
    batches.begin(order_of(cursor, batches.selection), batches.plan)
    assert [batch.keys for batch in loader] == keys(packed, cursor, WORKERS)


def test_other_numbers_of_workers_or_more_ranges_need_new_processes(packed: Manifest) -> None:
    batches = batches_of(packed, begin(packed, 0), WORKERS)
    plan = batches.plan
    assert batches.continues(replace(plan, first_step=2), 0)
    assert not batches.continues(plan, 1)
    assert not batches.continues(replace(plan, world_size=2), 0)
    assert not batches.continues(replace(plan, loader_workers=1), 0)
    assert not batches.continues(replace(plan, remaining=((0, 3), (5, 9))), 0)


def test_processes_hold_nothing_of_the_script_and_end_when_it_is_killed(
    packed: Manifest, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n" + SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with (tmp_path / "out").open("w") as out:  # a process left behind would hold a pipe open
        done = subprocess.run(
            [sys.executable, str(script), packed.url],
            cwd=tmp_path,
            env=environment,
            stdout=out,
            check=False,
        )
    assert done.returncode == -signal.SIGKILL
    first, second = (tmp_path / "out").read_text().splitlines()
    assert first == "this script runs"  # once: no process imports it
    has_scipy, has_torch, child, server = second.split()
    assert (has_scipy, has_torch) == ("False", "True")
    for _ in range(600):
        if not alive(child) and not alive(server):
            return
        time.sleep(0.1)
    raise AssertionError("a loader process outlives its trainer")


def alive(pid: str) -> bool:
    status = Path("/proc", pid, "stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_importing_what_a_loader_needs_imports_nothing_heavy() -> None:
    heavy = ["ray", "scipy", "sklearn", "skimage", "torchvision", "faiss", "s3fs", "jsonargparse"]
    code = f"import sys, shards.loader; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """600 pictures of 256 x 256 pixels."""
    root: Path = tmp_path_factory.mktemp("memory")
    rng = np.random.default_rng(0)
    for c in "abcdef":
        for n in range(100):
            small = rng.integers(0, 255, (32, 32, 3), np.uint8)
            path = root / "set" / c / f"{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(small).resize((256, 256)).save(path)
    return pack_tree(root / "set", root / "out", images_per_shard=100, num_patches=9)


def resident() -> float:
    """Resident memory of this process and its loader processes in MB."""
    pids = [os.getpid(), *children()]
    lines = [
        line
        for pid in pids
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    ]
    return sum(int(line.split()[1]) for line in lines) / 1024


def growth(manifest: Manifest, workers: int, kept: list[Batch] | None = None) -> float:
    """MB that are more after the last of 8 epochs than after the third."""
    selection, sizes = select(manifest, "train"), []
    batches = loader = None
    for epoch in range(8):
        cursor = start_of(manifest, selection, seed=0, epoch=epoch)
        plan, order = split_ranges(cursor.remaining, 1, workers, 64), order_of(cursor, selection)
        if batches is None:
            batches = Batches(manifest, selection, order, plan, 0, Cut("images", 256))
            loader = make_loader(batches)
        batches.begin(order, plan)
        assert loader is not None
        for batch in loader:
            if kept is not None:
                kept.append(batch)
        sizes.append(resident())
    return sizes[-1] - sizes[2]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_more_epochs_need_no_more_memory(large: Manifest, workers: int) -> None:
    assert growth(large, workers) < 20


@pytest.mark.slow
def test_streaming_through_fsspec_needs_no_more_either(large: Manifest) -> None:
    assert growth(replace(large, url=f"local://{large.url}"), 0) < 20


@pytest.mark.slow
def test_batches_that_are_kept_would_be_seen(large: Manifest) -> None:
    assert growth(large, 0, []) > 100
