"""Batches of one rank as its plan has them, in this process or in loader processes."""

import math
import multiprocessing
import os
import sys
import threading
import time
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import chain, islice, tee
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from shards import sampler
from shards.images import resize_square
from shards.manifest import Manifest, ShardEntry, ShardTable
from shards.objects import ACCESS, Access
from shards.sampler import Order, Plan, Selection
from shards.samples import DamagedImage, Part, RawSample, decode_sample, plan_parts, read_parts
from vgse.errors import UserError
from vgse.files import keep_sockets_short
from vgse.images.patches import cut_patches_opencv

# Below, the allocator hands out memory that it has used before, and filling that and copying
# it costs no more than filling new pages.
_SHARED_FROM = 32 << 20
_NONE = np.empty(0, np.int64)
_ROOT = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True)
class Cut:
    """What a batch holds of each picture: itself squeezed to side x side, to be cut on the
    accelerator (boxes are relative), or its N patches of side x side, cut here by OpenCV."""

    mode: Literal["images", "patches"]
    side: int


@dataclass(frozen=True)
class LoadTimes:
    """Seconds that a reader spent on a batch, or the sum over batches (and readers)."""

    read: float = 0.0  # waiting for bytes of the disk or the store, and taking the tar apart
    decode: float = 0.0  # JPEG to pixels
    cut: float = 0.0  # resizing or cutting patches, and copying them into the batch
    idle: float = 0.0  # the trainer's step; in a loader process the hand-over, and rest when ahead

    def __add__(self, other: "LoadTimes") -> "LoadTimes":
        """Sum, part by part."""
        return LoadTimes(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def busy(self) -> float:
        """Seconds of work: all but idle."""
        return self.read + self.decode + self.cut


@dataclass(frozen=True)
class Batch:
    """A step of one rank; B can be 0, and is smaller than planned by len(damaged)."""

    step: int  # number of the step in the plan
    boxes: Tensor  # float32 [B, N, 4] in 0..1
    labels: Tensor  # int64 [B] into class_names
    keys: list[str]
    damaged: list[str]  # keys of pictures that could not be decoded
    images: Tensor | None = None  # uint8 [B, 3, S, S] in channels_last memory, for Cut "images"
    patches: Tensor | None = None  # uint8 [B, N, P, P, 3], for Cut "patches"
    times: LoadTimes = LoadTimes()  # where its reader's time went

    def __len__(self) -> int:
        """B."""
        return len(self.keys)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; torch's DataLoader calls this by name."""
        pinned = {k: v.pin_memory() for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Batch(**{**vars(self), **pinned})


class Batches(IterableDataset[Batch]):
    """The batches of one rank in the order of their steps, plan after plan."""

    def __init__(
        self,
        manifest: Manifest,
        selection: Selection,
        order: Order,
        plan: Plan,
        rank: int,
        cut: Cut,
        *,
        max_damaged: float = 0.01,
        access: Access = ACCESS,
    ) -> None:
        """`max_damaged` is the share, in 0..1, of an epoch's pictures that may be damaged."""
        # What the selection says is not sent once more.
        self.manifest, self.order = replace(manifest, table=None, splits=None), order
        self.plan, self.rank, self.cut, self.max_damaged = plan, rank, cut, max_damaged
        self.memory = _shared(selection)
        self.selection = _selection(*self.memory)
        self.access = access
        # What changes from one epoch to the next, for loader processes that run already.
        self.shared = torch.zeros(4 + 2 * max(1, len(plan.remaining)), dtype=torch.int64)
        self.shared.share_memory_()
        self.begin(order, plan)

    def __getstate__(self) -> dict[str, Any]:
        """What a loader process gets: handles of the memory in which shards and samples are."""
        order = replace(self.order, shard=_NONE, first=_NONE, start=_NONE)
        return {**vars(self), "order": order, "selection": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, selection=_selection(*state["memory"]))

    def begin(self, order: Order, plan: Plan) -> None:
        """Give the batches of another epoch from the next iteration on."""
        assert order.total == self.selection.total
        assert (order.seed, order.block_size) == (self.order.seed, self.order.block_size)
        assert self.continues(plan, self.rank)
        self.order, self.plan = order, plan
        row = [order.epoch, plan.steps, plan.first_step, len(plan.remaining)]
        row += chain(*plan.remaining)
        self.shared[: len(row)] = torch.tensor(row)

    def continues(self, plan: Plan, rank: int) -> bool:
        """Whether processes that were started for these batches can go on with `plan`."""
        return (
            rank == self.rank
            and (plan.world_size, plan.loader_workers)
            == (self.plan.world_size, self.plan.loader_workers)
            and 4 + 2 * len(plan.remaining) <= len(self.shared)
        )

    def _current(self) -> tuple[Order, Plan]:
        epoch, steps, first_step, count, *edges = self.shared.tolist()
        remaining = tuple(zip(edges[: 2 * count : 2], edges[1 : 2 * count : 2], strict=True))
        if epoch != self.order.epoch or not len(self.order.start):
            seed, block_size = self.order.seed, self.order.block_size
            counts = self.selection.counts
            self.order = sampler.epoch_order(counts, seed=seed, epoch=epoch, block_size=block_size)
        plan = replace(self.plan, remaining=remaining, steps=steps, first_step=first_step)
        return self.order, plan

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this loader worker (of the whole rank outside of one)."""
        info = get_worker_info()
        reader, readers = (0, 1) if info is None else (info.id, info.num_workers)
        order, plan = self._current()
        assert readers == plan.readers, (readers, plan)
        cv2.setNumThreads(0)
        steps = sampler.reader_steps(plan, self.rank, reader)
        parts, ahead = tee(plan_parts(self._wanted(order, plan, reader), self.manifest.stride))
        # Its part of the epoch's damaged pictures, and what chance may add to that: a reader
        # knows of no other's, and of a few damaged pictures one may meet them all.
        limit = self.max_damaged * order.total
        part = limit / (plan.world_size * plan.readers)
        allowed = math.ceil(min(limit, part + 6 * math.sqrt(part)))
        samples = read_parts(self.manifest, ahead, access=self.access)
        return self._batched(steps, allowed, _in_order(parts, samples))

    def _wanted(
        self, order: Order, plan: Plan, reader: int
    ) -> Iterator[tuple[ShardEntry, NDArray[np.int64]]]:
        """Shard and samples of each piece of a reader, in order."""
        for start, stop in sampler.reader_ranges(plan, self.rank, reader):
            for shard, indices in sampler.pieces(order, start, stop):
                yield self.selection.shards[shard], self.selection.stored(shard, indices)

    def _batched(
        self, steps: Iterable[tuple[int, int]], allowed: int, samples: Iterator[RawSample]
    ) -> Iterator[Batch]:
        num_damaged = 0
        ended = time.perf_counter()
        for step, count in steps:
            idle = time.perf_counter() - ended
            batch = self._assemble(step, count, islice(samples, count), idle)
            assert len(batch) + len(batch.damaged) == count
            num_damaged += len(batch.damaged)
            if num_damaged > allowed:
                raise UserError(
                    f"{self.manifest.url}: {num_damaged} images are damaged "
                    f"(last: {batch.damaged[-1]}), more than max_damaged={self.max_damaged} "
                    "allows; run `python -m shards check` and pack again"
                )
            ended = time.perf_counter()
            yield batch

    def _assemble(self, step: int, count: int, samples: Iterable[RawSample], idle: float) -> Batch:
        """Decode and cut the samples straight into the arrays of a batch."""
        num_patches, side = self.manifest.num_patches, self.cut.side
        as_images = self.cut.mode == "images"
        shape = (side, side, 3) if as_images else (num_patches, side, side, 3)
        main = _empty((count, *shape))
        boxes = np.empty((count, num_patches, 4), np.float32)
        labels = np.empty(count, np.int64)
        keys: list[str] = []
        damaged: list[str] = []
        read = decoding = cutting = 0.0
        done = time.perf_counter()
        for raw in samples:
            started = time.perf_counter()
            read += started - done
            try:
                sample = decode_sample(raw, self.manifest)
                decoded = time.perf_counter()
                row = len(keys)
                if as_images:
                    resize_square(sample.image, side, main[row])
                else:
                    cut_patches_opencv(sample.image, sample.boxes, side, out=main[row])
                boxes[row], labels[row] = sample.boxes, sample.label
                keys.append(raw.key)
            except DamagedImage:
                damaged.append(raw.key)
                decoded = time.perf_counter()
            done = time.perf_counter()
            decoding += decoded - started
            cutting += done - decoded
        found = len(keys)
        cut = torch.from_numpy(main[:found])
        return Batch(
            step=step,
            boxes=torch.from_numpy(boxes[:found]),
            labels=torch.from_numpy(labels[:found]),
            keys=keys,
            damaged=damaged,
            images=cut.permute(0, 3, 1, 2) if as_images else None,
            patches=None if as_images else cut,
            times=LoadTimes(read, decoding, cutting, idle),
        )


def _in_order(parts: Iterator[Part], samples: Iterator[RawSample]) -> Iterator[RawSample]:
    for part in parts:
        position = part.start
        for wanted in part.wanted:
            last, chosen = int(wanted.max()) + 1, set(wanted.tolist())
            # Encoded pictures of one block are held, to leave in the epoch's order.
            read = islice(samples, last - position)
            held = {raw.index: raw for raw in read if raw.index in chosen}
            position = last
            for index in wanted.tolist():
                yield held.pop(index)


def _shared(selection: Selection) -> tuple[Tensor, Tensor | None, np.dtype[np.void]]:
    """The selection in memory that other processes read, and the type of the table's records."""
    records, in_use = selection.shards.records, selection.in_use
    used = None if in_use is None else torch.from_numpy(in_use).share_memory_()
    return torch.tensor(records.view(np.uint8)).share_memory_(), used, records.dtype


def _selection(shards: Tensor, in_use: Tensor | None, kind: np.dtype[np.void]) -> Selection:
    table = ShardTable(shards.numpy().view(kind))
    return Selection(table, None if in_use is None else in_use.numpy())


def make_loader(batches: Batches, *, pin_memory: bool = False) -> Iterable[Batch]:
    """The batches, from the plan's loader workers where there are any.

    Those start with the first iteration and live until the loader is deleted; each iteration is
    one epoch, see `Batches.begin`.
    """
    if not batches.plan.loader_workers:
        return batches
    # Has no effect on a server that runs already: its processes then import when they start.
    stores = ["s3fs"] if batches.manifest.url.startswith(("s3://", "s3a://")) else []
    forkserver.set_forkserver_preload(["shards.loader", *stores])
    loader = wds.WebLoader(
        batches,
        batch_size=None,
        num_workers=batches.plan.loader_workers,
        persistent_workers=True,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # draws nothing from the training's random numbers
        multiprocessing_context="forkserver",
        worker_init_fn=partial(_begin_process, dict(os.environ)),
    )
    return _LoaderProcesses(loader)


class _LoaderProcesses:
    """The batches of a WebLoader; what a user did wrong comes without its process's traceback."""

    def __init__(self, loader: wds.WebLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        with _lean_start():
            batches = self.loader.iterator1()
        try:
            yield from batches
        except UserError as error:
            last = str(error).strip().splitlines()[-1]
            # Left to the collector, the processes would be taken down out of order, and waited for.
            error.__traceback__ = None
            del batches, self.loader
            raise UserError(last.partition("UserError: ")[2]) from None


@contextmanager
def _lean_start() -> Iterator[None]:
    """Processes that start inside hold what loading needs and nothing of this process.

    They are forked from a server that has imported this module alone. A new process imports its
    parent's main module, which could start the training again: they are shown an empty one.
    """
    keep_sockets_short()
    main, path = sys.modules["__main__"], os.environ.get("PYTHONPATH")
    sys.modules["__main__"] = types.ModuleType("__main__")
    # The server does not take over sys.path.
    os.environ["PYTHONPATH"] = os.pathsep.join([_ROOT, *([path] if path else [])])
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        del os.environ["PYTHONPATH"]
        if path is not None:
            os.environ["PYTHONPATH"] = path


def _begin_process(variables: dict[str, str], worker: int) -> None:
    """Take the environment over from the trainer and end with it: torch looks at the server that
    forked this process, which outlives a killed trainer."""
    os.environ.clear()
    os.environ.update(variables)
    threading.Thread(target=_end_with_trainer, daemon=True).start()


def _end_with_trainer() -> None:
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)


def _empty(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array to fill; in a loader process in shared memory if it is large."""
    size = math.prod(shape)
    if get_worker_info() is None or size < _SHARED_FROM:
        return np.empty(shape, np.uint8)
    # As torch's own collate function does: what is shared already is sent without a copy.
    storage = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape).numpy()
