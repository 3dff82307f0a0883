"""Batches of one rank as its plan has them, in this process or in loader processes."""

import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, tee
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shards.images import resize_square
from shards.lean import BeginLoader, lean_context
from shards.loader_health import NO_TIMES, LoadTimes
from shards.manifest import Manifest
from shards.objects import ACCESS, Access
from shards.sampler import Order, Plan, Selection, pieces, reader_ranges, reader_steps
from shards.samples import RawSample, decode, label_index, parse_meta, read_parts
from shards.source import Part, Pass, plan_passes
from vgse.errors import UserError
from vgse.images.patches import cut_patches_opencv

# Below, the allocator hands out memory that it has used before, and filling that and copying
# it costs no more than filling new pages.
_SHARED_FROM = 32 << 20


@dataclass(frozen=True)
class Cut:
    """What a batch holds of each picture.

    "images": one picture squeezed to side x side, to be cut on the accelerator (boxes are
    relative, so they stay right). "patches": N patches of side x side, cut here by OpenCV.
    """

    mode: Literal["images", "patches"]
    side: int


@dataclass(frozen=True)
class Batch:
    """A step of one rank; B can be 0, and is smaller than planned by len(damaged).

    Attributes:
        step: number of the step in the plan.
        boxes: float32 [B, N, 4] in 0..1.
        labels: int64 [B] into class_names.
        keys: B keys; damaged: keys of pictures that could not be decoded.
        images: uint8 [B, 3, S, S] in channels_last memory ("images"), else None.
        patches: uint8 [B, N, P, P, 3] ("patches"), else None.
        times: where its reader's time went, in seconds.
    """

    step: int
    boxes: Tensor
    labels: Tensor
    keys: list[str]
    damaged: list[str]
    images: Tensor | None = None
    patches: Tensor | None = None
    times: LoadTimes = NO_TIMES

    def __len__(self) -> int:
        """B."""
        return len(self.keys)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; torch's DataLoader calls this by name."""
        return self._with({name: t.pin_memory() for name, t in self._tensors().items()})

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device, copied without waiting where memory is page-locked."""
        moved = {name: t.to(device, non_blocking=True) for name, t in self._tensors().items()}
        return self._with(moved)

    def _with(self, tensors: dict[str, Tensor]) -> "Batch":
        return Batch(**{**vars(self), **tensors})

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


class Batches(IterableDataset[Batch]):
    """The batches of one rank, in the order of their steps."""

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
        """`max_damaged` is the share, in 0..1, of an epoch's pictures that may be damaged;
        `access` says how remote shards are read."""
        assert order.total == sum(selection.counts)
        self.manifest, self.selection, self.order = manifest, selection, order
        self.plan, self.rank, self.cut, self.max_damaged = plan, rank, cut, max_damaged
        self.access = access

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this loader worker (of the whole rank outside of one)."""
        info = get_worker_info()
        reader, readers = (0, 1) if info is None else (info.id, info.num_workers)
        assert readers == self.plan.readers, (readers, self.plan)
        cv2.setNumThreads(0)
        labels = label_index(self.manifest)
        samples = self._samples(reader)
        steps = reader_steps(self.plan, self.rank, reader)
        allowed = self._allowed()
        num_damaged = 0
        ended = time.perf_counter()
        for step, count in steps:
            idle = time.perf_counter() - ended
            batch = self._assemble(step, count, islice(samples, count), labels, idle)
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

    def _allowed(self) -> int:
        """Damaged pictures that one reader may meet.

        Its part of those that the epoch may have, and what chance may add to that: a reader
        knows of no other's, and of a few damaged pictures one may meet them all.
        """
        limit = self.max_damaged * self.order.total
        part = limit / (self.plan.world_size * self.plan.readers)
        return math.ceil(min(limit, part + 6 * math.sqrt(part)))

    def _wanted(self, reader: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Shard number and samples of each piece of a reader, in order."""
        for start, stop in reader_ranges(self.plan, self.rank, reader):
            for piece in pieces(self.order, start, stop):
                chosen = self.selection.indices[piece.shard]
                yield piece.shard, piece.indices if chosen is None else chosen[piece.indices]

    def _part(self, one: Pass) -> Part:
        return Part(self.selection.shards[one.shard], one.start, one.stop)

    def _samples(self, reader: int) -> Iterator[RawSample]:
        now, ahead = tee(plan_passes(self._wanted(reader), self.manifest.stride))
        stored = read_parts(self.manifest, map(self._part, ahead), access=self.access)
        for one in now:
            place = one.start
            for wanted in one.wanted:
                last, keep = int(wanted.max()) + 1, set(wanted.tolist())
                # Encoded pictures of one block are held, to leave in the epoch's order.
                held = {raw.index: raw for raw in islice(stored, last - place) if raw.index in keep}
                place = last
                for index in wanted.tolist():
                    yield held.pop(index)

    def _assemble(
        self,
        step: int,
        count: int,
        samples: Iterable[RawSample],
        labels: dict[str, int],
        idle: float,
    ) -> Batch:
        num_patches, side = self.manifest.num_patches, self.cut.side
        as_images = self.cut.mode == "images"
        shape = (side, side, 3) if as_images else (num_patches, side, side, 3)
        main = _empty((count, *shape))
        boxes = np.empty((count, num_patches, 4), np.float32)
        classes = np.empty(count, np.int64)
        keys: list[str] = []
        damaged: list[str] = []
        read = decoding = cutting = 0.0
        clock = time.perf_counter
        done = clock()
        for raw in samples:
            arrived = clock()
            read += arrived - done
            meta = parse_meta(raw, labels, num_patches)
            try:
                image = decode(raw)
            except ValueError:
                damaged.append(raw.key)
                done = clock()
                decoding += done - arrived
                continue
            decoded = clock()
            row = len(keys)
            if as_images:
                resize_square(image, side, main[row])
            else:
                cut_patches_opencv(image, meta.boxes, side, out=main[row])
            boxes[row], classes[row] = meta.boxes, meta.label
            keys.append(raw.key)
            done = clock()
            decoding += decoded - arrived
            cutting += done - decoded
        found = len(keys)
        return Batch(
            step=step,
            boxes=torch.from_numpy(boxes[:found]),
            labels=torch.from_numpy(classes[:found]),
            keys=keys,
            damaged=damaged,
            images=_channels_first(main[:found]) if as_images else None,
            patches=None if as_images else torch.from_numpy(main[:found]),
            times=LoadTimes(read, decoding, cutting, idle),
        )


def make_loader(
    batches: Batches, *, pin_memory: bool = False, prefetch: int = 2
) -> Iterable[Batch]:
    """The batches themselves, or a DataLoader with the plan's loader workers around them."""
    workers = batches.plan.loader_workers
    if not workers:
        return batches
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch,
        multiprocessing_context=lean_context(batches.manifest.url),
        worker_init_fn=BeginLoader(dict(os.environ)),
    )
    return _OneLineErrors(loader)


class _OneLineErrors:
    """The batches of a DataLoader, without the tracebacks it puts before our messages."""

    def __init__(self, loader: "DataLoader[Batch]") -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self.loader
        except ValueError as error:
            last = str(error).strip().splitlines()[-1]
            raise UserError(last.removeprefix("ValueError: ")) from None


def _empty(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array to fill; in a loader process in shared memory if it is large."""
    size = math.prod(shape)
    if get_worker_info() is None or size < _SHARED_FROM:
        return np.empty(shape, np.uint8)
    # As torch's own collate function does: what is shared already is sent without a copy.
    storage = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape).numpy()


def _channels_first(images: NDArray[np.uint8]) -> Tensor:
    # A view: NHWC memory is what channels_last means.
    return torch.from_numpy(images).permute(0, 3, 1, 2)
