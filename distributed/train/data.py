"""What a training step sees: patches from the shards, or cached features in the same order."""

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distributed.features.cache import UNIT, Unit, UnitFeatures, access_of, read_unit
from shards import sampler
from shards.loader import Batch, Batches, Cut, LoadTimes, make_loader
from shards.manifest import Manifest, load_manifest
from shards.objects import ACCESS, Access
from shards.roles import with_roles
from shards.sampler import Cursor, Order, Plan, Selection
from vgse.images.patches import grid_boxes
from vgse.training.step import StepData

if TYPE_CHECKING:
    from distributed.train.trainer import TrainingJob


# A block of the order lies in two units, or in more where only some classes are trained on; the
# system allows 65,530 maps a process.
_MAPPED_UNITS = 64

_USUAL_SIDE = 384  # of a picture that was packed with the defaults

# Inputs, their boxes, labels, image ids and loading times of one worker's step.
Part = tuple[Tensor, Tensor | None, Tensor, Tensor, LoadTimes]


@dataclass(frozen=True, kw_only=True)
class StepBatch(StepData):
    """One worker's part of a step, with what the metrics count of it."""

    num_images: int  # without padding
    done_before: float  # share of the epoch, in 0..1, that was done before this step
    times: LoadTimes = field(default_factory=LoadTimes)  # of the loader; cached features have none


@dataclass
class Dataset:
    """The training images that a run uses, where they are read from, and who reads them."""

    manifest: Manifest
    selection: Selection
    label_of: Tensor  # int64 [C], class -> 0..S-1, or -1
    folder: str | None  # feature cache; None reads pixels
    cut: Cut
    batch_size: int  # over all workers
    loader_workers: int
    max_damaged: float
    access: Access = ACCESS
    loader: tuple[Batches, Iterable[Batch]] | None = None  # of pixels; lives over all epochs


def open_dataset(job: "TrainingJob", device: torch.device) -> Dataset:
    """The data of a job; reads the manifest and, to leave classes out, the labels."""
    manifest = with_roles(load_manifest(job.url, check_files=False), job.roles)
    label_of = torch.full((len(manifest.class_names),), -1)
    label_of[job.classes] = torch.arange(len(job.classes))
    config = job.config
    frozen = config.backbone.train == "none"
    if device.type == "cpu":
        cut = Cut("patches", config.backbone.patch_size)
    else:  # ship one picture and cut it on the accelerator
        cut = Cut("images", picture_side(manifest, config.backbone.patch_size))
    return Dataset(
        manifest=manifest,
        selection=sampler.select(manifest, "train", job.classes),
        label_of=label_of,
        folder=job.folder if frozen else None,
        cut=cut,
        batch_size=config.training.batch_size,
        loader_workers=0 if frozen else config.cluster.loader_workers,
        max_damaged=config.data.max_damaged,
        access=access_of(config.data),
    )


def picture_side(manifest: Manifest, patch_size: int) -> int:
    """Side in pixels of the squares that an accelerator gets: as large as the largest picture, but
    where pictures have kept their sizes, so that one may be far larger than all others, no larger
    than twice what the boxes of a grid need."""
    image, boxes = manifest.image, grid_boxes(manifest.num_patches)
    if image.short_side:
        return image.largest or image.short_side
    smallest = float((boxes[:, 2:] - boxes[:, :2]).min())
    return min(image.largest or _USUAL_SIDE, max(_USUAL_SIDE, math.ceil(2 * patch_size / smallest)))


def epoch_batches(
    dataset: Dataset,
    cursor: Cursor,
    plan: Plan,
    rank: int,
    *,
    patch_size: int,
    device: torch.device,
) -> Iterator[StepBatch]:
    """The batches of one rank for the rest of an epoch; every rank gets equally many. A rank whose
    part of a step is empty gets a blank image of weight 0, to take part in collective calls; for
    an accelerator blank images make all batches of pictures alike in size."""
    order = sampler.order_of(cursor, dataset.selection)
    counts = sampler.batch_counts(plan)
    totals, most = counts.sum(0), counts.max(0)
    full = 0
    if dataset.folder is None and dataset.cut.mode == "images":
        # An accelerator's libraries plan and compile for each size of a batch that they meet.
        full = int(most.max())
        most = np.full_like(most, full)
    before = cursor.total - plan.total + np.concatenate([[0], np.cumsum(totals)[:-1]])
    shares = before / cursor.total  # counted through the whole plan, from its step 0
    parts = (
        _pixel_parts(dataset, order, plan, rank, device)
        if dataset.folder is None
        else _feature_parts(dataset, order, plan, rank)
    )
    for step, (inputs, boxes, labels, images, times) in enumerate(parts, plan.first_step):
        num_images = len(labels)
        weights = torch.ones(num_images)
        if short := max(full, num_images, 1) - num_images:
            inputs, labels, weights = (_padded(v, short) for v in (inputs, labels, weights))
            images = F.pad(images, [0, short], value=-1)
            boxes = None if boxes is None else _padded(boxes, short)
        yield StepBatch(
            inputs,
            labels,
            images,
            weights,
            max(1, int(totals[step])),
            max(1, int(most[step])),
            boxes,
            0 if boxes is None else patch_size,
            num_images=num_images,
            done_before=float(shares[step]),
            times=times,
        )


def _padded(values: Tensor, count: int) -> Tensor:
    return torch.cat([values, values.new_zeros(count, *values.shape[1:])])


def _pixel_parts(
    dataset: Dataset, order: Order, plan: Plan, rank: int, device: torch.device
) -> Iterator[Part]:
    if dataset.loader is None or not dataset.loader[0].continues(plan, rank):
        new = Batches(
            dataset.manifest,
            dataset.selection,
            order,
            plan,
            rank,
            dataset.cut,
            max_damaged=dataset.max_damaged,
            access=dataset.access,
        )
        dataset.loader = new, make_loader(new, pin_memory=device.type == "cuda")
    batches, loader = dataset.loader
    batches.begin(order, plan)
    # Not to the loader's end: a thread that reads ahead could still wait there for its processes
    # while the next epoch asks them to begin.
    for batch in islice(loader, plan.steps - plan.first_step):
        if batch.patches is not None:
            inputs, boxes = batch.patches.permute(0, 1, 4, 2, 3), None
        else:  # pictures, out of which the step cuts the boxes on the accelerator
            assert batch.images is not None
            inputs, boxes = batch.images, batch.boxes
        digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in batch.keys]
        ids = [int.from_bytes(digest, "little") >> 1 for digest in digests]
        labels = dataset.label_of[batch.labels]
        yield inputs, boxes, labels, torch.tensor(ids, dtype=torch.int64), batch.times


def _feature_parts(dataset: Dataset, order: Order, plan: Plan, rank: int) -> Iterator[Part]:
    """Cached features of images that were not damaged. Units are mapped on first use, and let go
    when the order has passed them; the system pages them in and out."""
    assert dataset.folder is not None and plan.loader_workers == 0
    folder = dataset.folder

    @functools.lru_cache(maxsize=_MAPPED_UNITS)
    def unit_of(shard: int, number: int) -> UnitFeatures:
        entry, start = dataset.selection.shards[shard], number * UNIT
        unit = Unit(entry.file, "train", start, min(start + UNIT, entry.count))
        return read_unit(folder, unit, dataset.access)

    rows = [np.empty((0, 2), np.int64)]  # (shard, index in the shard)
    for start, stop in sampler.reader_ranges(plan, rank, 0):
        for shard, indices in sampler.pieces(order, start, stop):
            inside = dataset.selection.stored(shard, indices)
            rows.append(np.stack([np.full_like(inside, shard), inside], 1))
    samples = iter(np.concatenate(rows))
    for _, count in sampler.reader_steps(plan, rank, 0):
        features, labels, ids = [], [], []
        for shard, index in (sample.tolist() for sample in islice(samples, count)):
            unit = unit_of(shard, index // UNIT)
            row = int(torch.searchsorted(unit.rows, index))
            if row < len(unit.rows) and int(unit.rows[row]) == index:
                features.append(unit.patches[row])
                labels.append(int(unit.labels[row]))
                ids.append((shard << 40) + index)
        yield (
            torch.stack(features) if features else unit_of(0, 0).patches[:0],
            None,
            dataset.label_of[torch.tensor(labels, dtype=torch.int64)],
            torch.tensor(ids, dtype=torch.int64),
            LoadTimes(),
        )


@dataclass(frozen=True)
class Position:
    """A place within an epoch: the plan that was followed, and how far, rather than what is left:
    as many workers go on with the very batches that an uninterrupted run would have seen."""

    cursor: Cursor  # what the plan deals out
    world_size: int
    loader_workers: int
    plan_step: int  # steps of the plan that are done
    step: int  # optimiser steps of the run

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON."""
        return {**vars(self), "cursor": self.cursor.to_dict()}


def epoch_start(dataset: Dataset, epoch: int, step: int, seed: int, world_size: int) -> Position:
    """The beginning of an epoch."""
    cursor = sampler.start_of(dataset.manifest, dataset.selection, seed=seed, epoch=epoch)
    return Position(cursor, world_size, dataset.loader_workers, 0, step)


def restore_position(state: dict[str, Any], dataset: Dataset, world_size: int) -> Position:
    """The position of a checkpoint, dealt out anew if the number of workers has changed."""
    cursor = sampler.restore(state["cursor"], dataset.manifest, dataset.selection)
    saved = Position(
        cursor, state["world_size"], state["loader_workers"], state["plan_step"], state["step"]
    )
    if (saved.world_size, saved.loader_workers) == (world_size, dataset.loader_workers):
        return saved
    left = sampler.remaining_after(_whole_plan(saved, dataset), saved.plan_step)
    left_cursor = replace(cursor, remaining=left)
    return Position(left_cursor, world_size, dataset.loader_workers, 0, saved.step)


def plan_of(position: Position, dataset: Dataset) -> Plan:
    """What is left to do of the position's epoch."""
    return sampler.continue_at(_whole_plan(position, dataset), position.plan_step)


def _whole_plan(position: Position, dataset: Dataset) -> Plan:
    return sampler.split_ranges(
        position.cursor.remaining, position.world_size, position.loader_workers, dataset.batch_size
    )
