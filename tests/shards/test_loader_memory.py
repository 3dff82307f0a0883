"""Memory does not grow from epoch to epoch."""

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.loader import Batch, Batches, Cut, make_loader
from shards.manifest import Manifest
from shards.objects import Access
from shards.sampler import order_of, select, split_ranges, start_of
from shards_trees import pack_tree

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
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
    """Resident memory of this process in MB."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def growth(manifest: Manifest, loader_workers: int, kept: list[Batch] | None = None) -> float:
    """MB that this process grew from the end of epoch 1 to that of epoch 5."""
    selection = select(manifest, "train")
    sizes = []
    for epoch in range(5):
        cursor = start_of(manifest, selection, seed=0, epoch=epoch)
        plan = split_ranges(cursor.remaining, 1, loader_workers, 64)
        order = order_of(cursor, selection)
        cut = Cut("images", 256)
        for batch in make_loader(
            Batches(manifest, selection, order, plan, 0, cut, access=Access())
        ):
            if kept is not None:
                kept.append(batch)
        sizes.append(resident())
    return sizes[-1] - sizes[0]


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_five_epochs_need_no_more_memory_than_one(packed: Manifest, loader_workers: int) -> None:
    growth(packed, loader_workers)  # allocators fill their pools
    assert growth(packed, loader_workers) < 15


def test_streaming_through_fsspec_needs_no_more_either(packed: Manifest) -> None:
    from dataclasses import replace

    far = replace(packed, url=f"local://{packed.url}")
    growth(far, 0)
    assert growth(far, 0) < 15


def test_batches_that_are_kept_would_be_seen(packed: Manifest) -> None:
    assert growth(packed, 0, []) > 100
