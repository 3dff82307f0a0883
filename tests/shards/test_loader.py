import pickle
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.loader import Batch, Batches, Cut, LoadTimes, make_loader
from shards.manifest import Manifest, ShardTable
from shards.sampler import (
    Cursor,
    Selection,
    batch_counts,
    epoch_order,
    order_of,
    remaining_after,
    restore,
    select,
    split_ranges,
    start_of,
)
from shards.samples import read_raw, read_shard
from shards_trees import flat_tree, pack_tree
from vgse.images.patches import cut_patches, cut_patches_opencv

IMAGES = Cut("images", 24)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("batches")
    flat_tree(root / "set", images=40)
    return pack_tree(root / "set", root / "out", images_per_shard=50)


def batches_of(
    manifest: Manifest,
    cursor: Cursor,
    *,
    world_size: int = 1,
    loader_workers: int = 0,
    batch_size: int = 16,
    cut: Cut = IMAGES,
    stop: int | None = None,
    **options: Any,
) -> tuple[list[Batch], Cursor]:
    """All ranks' batches of the first `stop` steps, and the cursor after them."""
    selection = select(manifest, "train")
    plan = split_ranges(cursor.remaining, world_size, loader_workers, batch_size)
    order = order_of(cursor, selection)
    found = []
    for rank in range(world_size):
        batches = Batches(manifest, selection, order, plan, rank, cut, **options)
        found += [b for b in make_loader(batches) if stop is None or b.step < stop]
    done = plan.steps if stop is None else stop
    return found, replace(cursor, remaining=remaining_after(plan, done))


def begin(manifest: Manifest, epoch: int = 0) -> Cursor:
    return start_of(manifest, select(manifest, "train"), seed=3, epoch=epoch, block_size=16)


def all_keys(manifest: Manifest, split: str = "train") -> list[str]:
    shards = manifest.shards_of(split)
    return sorted(raw.key for shard in shards for raw in read_raw(manifest, shard))


def test_an_epoch_has_every_image_once_in_planned_batches(packed: Manifest) -> None:
    found, _ = batches_of(packed, begin(packed), world_size=2)
    assert sorted(key for batch in found for key in batch.keys) == all_keys(packed)
    counts = batch_counts(split_ranges(begin(packed).remaining, 2, 0, 16))
    assert [len(batch) for batch in found] == counts.ravel().tolist()


def test_another_epoch_has_another_order(packed: Manifest) -> None:
    one, two, three = (
        [key for batch in batches_of(packed, begin(packed, epoch))[0] for key in batch.keys]
        for epoch in (0, 0, 1)
    )
    assert one == two != three and sorted(one) == sorted(three)


def test_loader_processes_give_the_steps_in_order(packed: Manifest) -> None:
    found, _ = batches_of(packed, begin(packed), loader_workers=3, batch_size=10)
    assert [batch.step for batch in found] == list(range(len(found)))
    assert sorted(key for batch in found for key in batch.keys) == all_keys(packed)
    counts = batch_counts(split_ranges(begin(packed).remaining, 1, 3, 10))
    assert [len(batch) for batch in found] == counts[0].tolist()
    assert found[0].images is not None
    assert found[0].images.is_contiguous(memory_format=torch.channels_last)


def test_more_loader_processes_than_batches_are_no_harm(packed: Manifest) -> None:
    found, _ = batches_of(packed, begin(packed), loader_workers=3, batch_size=100)
    assert len(found) == 2
    assert sorted(key for batch in found for key in batch.keys) == all_keys(packed)


def test_one_two_and_three_workers_after_stops_see_each_image_once(packed: Manifest) -> None:
    seen: Counter[str] = Counter()
    cursor = begin(packed)
    for world_size, loader_workers, stop in ((1, 2, 3), (2, 0, 2), (3, 0, None)):
        found, cursor = batches_of(
            packed, cursor, world_size=world_size, loader_workers=loader_workers, stop=stop
        )
        seen.update(key for batch in found for key in batch.keys)
        cursor = restore(cursor.to_dict(), packed, select(packed, "train"))
    assert sorted(seen.elements()) == all_keys(packed)
    assert cursor.remaining == ()


def test_images_and_labels_are_those_of_the_shard(packed: Manifest) -> None:
    stored = {s.key: s for shard in packed.shards for s in read_shard(packed, shard)}
    batch = batches_of(packed, begin(packed), cut=Cut("images", 30))[0][0]
    assert batch.images is not None
    assert batch.images.shape == (len(batch), 3, 30, 30) and batch.images.dtype == torch.uint8
    for row, key in enumerate(batch.keys):
        assert int(batch.labels[row]) == stored[key].label
        assert np.array_equal(batch.boxes[row].numpy(), stored[key].boxes)
        mean = batch.images[row].float().mean((1, 2)).numpy()
        assert np.abs(mean - stored[key].image.mean((0, 1))).max() < 3


def test_a_picture_of_the_right_size_is_shipped_unchanged(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set", images=4)
    manifest = pack_tree(tmp_path / "set", tmp_path / "out")
    square = replace(manifest)
    batch = batches_of(square, begin(square), cut=Cut("images", 30))[0][0]
    stored = {s.key: s for shard in manifest.shards for s in read_shard(manifest, shard)}
    boxes = np.array([[0, 0, 1, 1]], np.float32)
    expected = cut_patches_opencv(stored[batch.keys[0]].image, boxes, 30)[0]
    assert batch.images is not None
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), expected)


def test_patches_cut_here_or_on_the_device_agree(packed: Manifest) -> None:
    here = batches_of(packed, begin(packed), cut=Cut("patches", 8))[0][0]
    there = batches_of(packed, begin(packed), cut=Cut("images", 40))[0][0]
    assert here.patches is not None and there.images is not None and here.images is None
    assert here.keys == there.keys and here.patches.shape == (len(here), 4, 8, 8, 3)
    cut = cut_patches(there.images, there.boxes, 8).permute(0, 1, 3, 4, 2)
    # The picture is 40 x 30: squeezing it to a square first costs a second interpolation.
    assert (cut - here.patches.float()).abs().mean() < 2


def test_with_fewer_images_than_ranks_a_batch_may_be_empty(packed: Manifest) -> None:
    few = replace(begin(packed), remaining=((0, 2),))
    found, _ = batches_of(packed, few, world_size=3, cut=Cut("patches", 8))
    assert sorted(len(batch) for batch in found) == [0, 1, 1]
    empty = next(batch for batch in found if not len(batch))
    assert empty.patches is not None and empty.patches.shape == (0, 4, 8, 8, 3)
    assert empty.boxes.shape == (0, 4, 4) and empty.labels.shape == (0,)


def test_classes_can_be_left_out_without_reading_shards(packed: Manifest) -> None:
    wanted = sorted(set(packed.seen) - set(packed.val))
    selection = select(packed, "train", wanted)
    cursor = start_of(packed, selection, seed=0)
    plan = split_ranges(cursor.remaining, 2, 0, 16)
    order = order_of(cursor, selection)
    labels: list[int] = []
    for rank in range(2):
        for batch in Batches(packed, selection, order, plan, rank, IMAGES):
            labels += batch.labels.tolist()
    assert sorted(set(labels)) == wanted
    counts = packed.class_counts["train"]
    assert len(labels) == sum(counts[packed.class_names[index]] for index in wanted)


def test_a_split_without_the_classes_is_refused(packed: Manifest) -> None:
    with pytest.raises(ValueError, match="no images in split test_unseen for the classes asked"):
        select(packed, "test_unseen", packed.seen)
    with pytest.raises(ValueError, match="no split 'validation'; take one of train, test_seen"):
        select(packed, "validation")


def spoil(manifest: Manifest, folder: Path, count: int) -> Manifest:
    """Overwrite the middle of some pictures; the tar stays in order."""
    shard = manifest.shards_of("train")[0]
    data = bytearray(Path(manifest.url, shard.file).read_bytes())
    for raw in list(read_raw(manifest, shard))[:count]:
        at = data.find(raw.jpeg)
        data[at : at + 30] = bytes(30)
    for other in manifest.shards:
        (folder / other.file).write_bytes(Path(manifest.url, other.file).read_bytes())
    (folder / shard.file).write_bytes(data)
    return replace(manifest, url=str(folder), table=manifest.shards)


def test_a_damaged_image_is_skipped_and_reported(packed: Manifest, tmp_path: Path) -> None:
    bad = spoil(packed, tmp_path, 2)
    keys = [raw.key for raw in read_raw(packed, packed.shards_of("train")[0])][:2]
    found, _ = batches_of(bad, begin(bad), max_damaged=0.05)
    counts = batch_counts(split_ranges(begin(bad).remaining, 1, 0, 16))[0]
    assert sorted(key for batch in found for key in batch.damaged) == keys
    assert [len(batch) + len(batch.damaged) for batch in found] == counts.tolist()
    whole, _ = batches_of(packed, begin(packed))
    for ours, sound in zip(found, whole, strict=True):
        assert ours.keys == [key for key in sound.keys if key not in keys]


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_too_many_damaged_images_stop_the_stream(
    packed: Manifest, tmp_path: Path, loader_workers: int
) -> None:
    bad = spoil(packed, tmp_path, 4)
    message = r"images are damaged \(last: \S+\), more than max_damaged"
    with pytest.raises(ValueError, match=message) as caught:
        batches_of(bad, begin(bad), loader_workers=loader_workers)
    assert "\n" not in str(caught.value)


def test_one_damaged_image_stops_no_run_of_many_readers(packed: Manifest, tmp_path: Path) -> None:
    bad = spoil(packed, tmp_path, 1)
    found, _ = batches_of(bad, begin(bad), world_size=16)
    assert sum(len(batch.damaged) for batch in found) == 1
    with pytest.raises(ValueError, match=r"more than max_damaged=0 allows"):
        batches_of(bad, begin(bad), world_size=16, max_damaged=0)


def test_a_damaged_image_among_the_last_ones_stops_no_run(packed: Manifest, tmp_path: Path) -> None:
    bad = spoil(packed, tmp_path, 1)
    ends = (replace(begin(bad), remaining=((n, n + 8),)) for n in range(0, 120, 8))
    assert sum(len(batch.damaged) for end in ends for batch in batches_of(bad, end)[0]) == 1


def test_many_readers_stop_where_a_third_of_the_images_is_damaged(
    packed: Manifest, tmp_path: Path
) -> None:
    bad = spoil(packed, tmp_path, 40)
    with pytest.raises(ValueError, match=r"more than max_damaged=0\.01 allows"):
        batches_of(bad, begin(bad), world_size=8)


def test_a_cursor_of_other_shards_is_refused(packed: Manifest) -> None:
    selection = select(packed, "train")
    state = begin(packed).to_dict()
    assert restore(state, packed, selection) == begin(packed)
    other = replace(packed, fingerprint="another")
    with pytest.raises(ValueError, match="its data cursor belongs to other shards"):
        restore(state, other, selection)
    fewer = select(packed, "train", packed.val)
    with pytest.raises(ValueError, match="its data cursor belongs to other shards"):
        restore(state, packed, fewer)
    with pytest.raises(ValueError, match=r"data cursor version is 7.*another --run-id"):
        restore({**state, "version": 7}, packed, selection)
    with pytest.raises(ValueError, match=r"damaged data cursor.*another --run-id"):
        restore({"version": 1}, packed, selection)


def test_what_goes_to_a_loader_process_can_be_pickled(packed: Manifest) -> None:
    selection = select(packed, "train", sorted(set(packed.seen) - set(packed.val)))
    cursor = start_of(packed, selection, seed=0)
    plan = split_ranges(cursor.remaining, 1, 0, 16)
    batches = Batches(packed, selection, order_of(cursor, selection), plan, 0, IMAGES)
    twin = pickle.loads(pickle.dumps(batches))
    assert [batch.keys for batch in twin] == [batch.keys for batch in batches]


def test_a_batch_that_is_made_in_shared_memory_is_the_same(packed: Manifest) -> None:
    few = replace(begin(packed), remaining=((0, 32),))
    cut = Cut("images", 640)  # 39 MB of pictures
    (here,), (there,) = (
        batches_of(packed, few, loader_workers=workers, batch_size=32, cut=cut)[0]
        for workers in (0, 1)
    )
    assert here.keys == there.keys and len(here) == 32
    assert here.images is not None and there.images is not None
    assert torch.equal(here.images, there.images)
    assert there.images.is_contiguous(memory_format=torch.channels_last)


def test_what_a_loader_process_gets_does_not_grow_with_the_shards(packed: Manifest) -> None:
    def sizes(times: int) -> tuple[int, int]:
        table = ShardTable(np.tile(packed.shards_of("train").records, times))
        selection = Selection(table, np.ones(table.counts.sum(), bool))
        order = epoch_order(selection.counts, seed=0, epoch=0)
        plan = split_ranges([(0, order.total)], 1, 2, 16)
        batches = Batches(packed, selection, order, plan, 0, IMAGES)
        return len(ForkingPickler.dumps(batches)), len(pickle.dumps(selection))

    (few, whole), (many, all_of_it) = sizes(1), sizes(100)
    assert many < few + 100 and all_of_it > 20 * whole


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
