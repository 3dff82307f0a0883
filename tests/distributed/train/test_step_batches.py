"""Batches read from shards, as a CPU takes them and as an accelerator does."""

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from distributed.features.cache import Unit, write_unit
from distributed.train import data
from distributed.train.data import Dataset, StepBatch, epoch_batches, picture_side
from distributed.train.prefetch import one_ahead
from shards.loader import Cut
from shards.manifest import ImageSpec, Manifest
from shards.sampler import select, split_ranges, start_of
from tiny import NAMES, make_tiny
from vgse.images.patches import cut_patches
from vgse.training.step import StepData

CPU = torch.device("cpu")
SIDE = 24


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_tiny(tmp_path_factory.mktemp("tiny"), train=5, test=1)


def batches_of(
    manifest: Manifest, cut: Cut, *, rank: int = 0, workers: int = 1, batch_size: int = 16
) -> Iterator[StepBatch]:
    selection = select(manifest, "train")
    label_of = torch.arange(len(NAMES))
    dataset = Dataset(manifest, selection, label_of, None, cut, batch_size, 0, 0.0)
    cursor = start_of(manifest, selection, seed=0)
    plan = split_ranges(cursor.remaining, workers, 0, batch_size)
    return epoch_batches(dataset, cursor, plan, rank, patch_size=SIDE, device=CPU)


def test_pictures_for_an_accelerator_hold_the_patches_that_a_cpu_gets(manifest: Manifest) -> None:
    patches = list(batches_of(manifest, Cut("patches", SIDE)))
    pictures = list(batches_of(manifest, Cut("images", 64)))
    assert len(patches) == len(pictures) == 4
    for expected, found in zip(patches, pictures, strict=True):
        assert expected.boxes is None
        assert found.inputs.dtype == torch.uint8
        assert found.inputs.shape[1:] == (3, 64, 64)
        count = len(expected.labels)
        assert found.num_images == count
        assert torch.equal(found.labels[:count], expected.labels)
        assert torch.equal(found.images[:count], expected.images)
        cut = found.patches(0, count)
        assert cut.shape == expected.inputs.shape
        assert (cut - expected.inputs.float()).abs().max() <= 1.0
        assert found.boxes is not None
        moved = cut_patches(found.inputs[:count], found.boxes[:count].roll(1, 1), SIDE)
        assert (moved - expected.inputs.float()).abs().max() > 20  # other boxes, other patches


def test_batches_for_an_accelerator_are_alike_in_size_by_blank_images(manifest: Manifest) -> None:
    found = list(batches_of(manifest, Cut("images", 64), batch_size=15))
    assert {batch.num_images for batch in found} == {12, 13}
    assert {len(batch.labels) for batch in found} == {batch.most_images for batch in found} == {13}
    for batch in found:
        assert batch.boxes is not None and len(batch.inputs) == len(batch.boxes) == 13
        assert batch.weights.sum() == batch.num_images == batch.total_images
        assert (batch.images >= 0).sum() == batch.num_images
        assert torch.isfinite(batch.patches(0, 13)).all()


@pytest.mark.parametrize(
    ("image", "patch_size", "side"),
    [
        (ImageSpec(384, 95, 384), 224, 384),
        (ImageSpec(384, 95, 128), 64, 128),  # all are smaller
        (ImageSpec(384, 95), 64, 384),  # of an earlier version
        (ImageSpec(0, 95, 500), 64, 384),
        (ImageSpec(0, 95, 4000), 224, 896),  # nine boxes of half the side, twice 224 pixels each
        (ImageSpec(0, 95, 300), 224, 300),
    ],
)
def test_one_large_picture_does_not_make_all_of_a_batch_as_large(
    image: ImageSpec, patch_size: int, side: int, manifest: Manifest
) -> None:
    patches = replace(manifest.patches, num_patches=9)
    assert picture_side(replace(manifest, image=image, patches=patches), patch_size) == side


def test_batches_read_in_a_thread_are_the_same(manifest: Manifest) -> None:
    cut = Cut("images", 64)
    plain = list(batches_of(manifest, cut))
    ahead = list(one_ahead(batches_of(manifest, cut)))
    assert len(plain) == len(ahead)
    for expected, found in zip(plain, ahead, strict=True):
        for name, value in ((f.name, getattr(expected, f.name)) for f in fields(StepData)):
            other = getattr(found, name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other), name
            else:
                assert value == other, name


@pytest.mark.parametrize(("mode", "batch_size"), [("patches", 2), ("images", 2), ("patches", 4)])
def test_every_worker_knows_the_largest_part_of_a_step(
    manifest: Manifest, mode: str, batch_size: int
) -> None:
    cut = Cut("patches", SIDE) if mode == "patches" else Cut("images", 64)
    ranks = [
        list(batches_of(manifest, cut, rank=rank, workers=3, batch_size=batch_size))
        for rank in range(3)
    ]
    padded = uneven = 0
    for parts in zip(*ranks, strict=True):
        largest = max(len(part.labels) for part in parts)
        uneven += min(len(part.labels) for part in parts) < largest
        assert {part.most_images for part in parts} == {largest}
        assert sum(part.num_images for part in parts) == parts[0].total_images
        for part in parts:
            padded += not part.num_images
            data = part
            assert data.patches(0, len(data.labels)).shape[2:] == (3, SIDE, SIDE)
            assert isinstance(data, StepData)
    assert (padded == 1) == (batch_size == 2)  # of 50 images for 3 workers, by one each
    assert (uneven > 0) == (batch_size == 4)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_epochs_that_a_thread_reads_ahead_follow_each_other_in_the_same_processes(
    manifest: Manifest,
) -> None:
    selection = select(manifest, "train")
    label_of, cut = torch.arange(len(NAMES)), Cut("images", 16)
    dataset = Dataset(manifest, selection, label_of, None, cut, 16, 2, 0.0)
    alone = Dataset(manifest, selection, label_of, None, cut, 16, 2, 0.0)
    pids = set()
    for epoch in range(5):
        cursor = start_of(manifest, selection, seed=0, epoch=epoch)
        plan = split_ranges(cursor.remaining, 1, 2, 16)
        found = one_ahead(epoch_batches(dataset, cursor, plan, 0, patch_size=SIDE, device=CPU))
        labels = [next(found).labels.tolist() for _ in range(plan.steps)]  # as the trainer does
        pids |= {process.pid for process in multiprocessing.active_children()}
        alone.loader = None
        expected = epoch_batches(alone, cursor, plan, 0, patch_size=SIDE, device=CPU)
        assert labels == [batch.labels.tolist() for batch in expected]
        alone.loader = None
    assert len(pids) == 2


def test_units_that_the_order_has_passed_are_not_mapped_any_longer(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, shard = manifest.num_images("train"), manifest.shards_of("train")[0]
    for start in range(0, images, 2):
        unit = Unit(shard.file, "train", start, start + 2)
        rows = torch.arange(start, start + 2)
        tensors = {
            "labels": rows % len(NAMES),
            "rows": rows,
            "images": rows[:, None].half(),
            "patches": rows[:, None, None].half(),
        }
        write_unit(tmp_path, unit, tensors, {"keys": json.dumps(["a", "b"])})
    monkeypatch.setattr(data, "UNIT", 2)
    selection = select(manifest, "train")
    labels = torch.arange(len(NAMES))
    cut = Cut("patches", SIDE)
    dataset = Dataset(manifest, selection, labels, str(tmp_path), cut, 4, 0, 0.0)
    cursor = start_of(manifest, selection, seed=0)
    plan = split_ranges(cursor.remaining, 1, 0, 4)

    def maps(allowed: int) -> tuple[list[float], int]:
        """The features of an epoch, and the most units that were mapped at once."""
        monkeypatch.setattr(data, "_MAPPED_UNITS", allowed)
        found, most = [], 0
        for batch in epoch_batches(dataset, cursor, plan, 0, patch_size=SIDE, device=CPU):
            found += batch.inputs.flatten().tolist()
            mapped = Path("/proc/self/maps").read_text().splitlines()
            most = max(most, len({line.split()[-1] for line in mapped if str(tmp_path) in line}))
        return found, most

    few, many = maps(3), maps(1000)
    assert few[0] == many[0] and sorted(few[0]) == list(range(images))
    assert few[1] <= 3 + 1  # and the one at hand
    assert many[1] == images // 2
