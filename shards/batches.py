"""Batches of one rank as its plan has them, in this process or in loader processes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shards.cursor import Selection
from shards.images import resize_square
from shards.manifest import Manifest
from shards.order import Order, pieces
from shards.plan import Plan, reader_ranges, reader_steps
from shards.stream import RawSample, decode, label_index, parse_meta, read_raw
from vgse.patches import cut_patches_opencv


@dataclass(frozen=True)
class Cut:
    """What a batch holds of each picture.

    "images": one picture squeezed to side x side, to be cut on the accelerator (boxes are
    relative, so they stay right). "patches": N patches of side x side, cut here by OpenCV.
    whole > 0 adds the picture squeezed to whole x whole.
    """

    mode: Literal["images", "patches"]
    side: int
    whole: int = 0


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
        whole: uint8 [B, 3, I, I] in channels_last memory, or None.
    """

    step: int
    boxes: Tensor
    labels: Tensor
    keys: list[str]
    damaged: list[str]
    images: Tensor | None = None
    patches: Tensor | None = None
    whole: Tensor | None = None

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
    ) -> None:
        """`max_damaged` is the share, in 0..1, of a reader's pictures that may be damaged."""
        assert order.total == sum(selection.counts)
        self.manifest, self.selection, self.order = manifest, selection, order
        self.plan, self.rank, self.cut, self.max_damaged = plan, rank, cut, max_damaged

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this loader worker (of the whole rank outside of one)."""
        info = get_worker_info()
        reader, readers = (0, 1) if info is None else (info.id, info.num_workers)
        assert readers == self.plan.readers, (readers, self.plan)
        cv2.setNumThreads(0)
        labels = label_index(self.manifest)
        samples = self._samples(reader)
        steps = list(reader_steps(self.plan, self.rank, reader))
        allowed = self.max_damaged * sum(count for _, count in steps)
        num_damaged = 0
        for step, count in steps:
            batch = self._assemble(step, count, islice(samples, count), labels)
            assert len(batch) + len(batch.damaged) == count
            num_damaged += len(batch.damaged)
            if num_damaged > allowed:
                raise ValueError(
                    f"{self.manifest.url}: {num_damaged} images are damaged "
                    f"(last: {batch.damaged[-1]}), more than max_damaged={self.max_damaged} "
                    "allows; run `python -m shards check` and pack again"
                )
            yield batch

    def _samples(self, reader: int) -> Iterator[RawSample]:
        for start, stop in reader_ranges(self.plan, self.rank, reader):
            for piece in pieces(self.order, start, stop):
                shard = self.selection.shards[piece.shard]
                chosen = self.selection.indices[piece.shard]
                wanted = piece.indices if chosen is None else chosen[piece.indices]
                low, high = int(wanted.min()), int(wanted.max()) + 1
                keep = set(wanted.tolist())
                # Encoded pictures of one block are held, to leave in the epoch's order.
                held = {
                    raw.index: raw
                    for raw in read_raw(self.manifest, shard, start=low, stop=high)
                    if raw.index in keep
                }
                for index in wanted.tolist():
                    yield held.pop(index)

    def _assemble(
        self, step: int, count: int, samples: Iterable[RawSample], labels: dict[str, int]
    ) -> Batch:
        num_patches, side, whole = self.manifest.num_patches, self.cut.side, self.cut.whole
        as_images = self.cut.mode == "images"
        shape = (side, side, 3) if as_images else (num_patches, side, side, 3)
        main = np.empty((count, *shape), np.uint8)
        wholes = np.empty((count, whole, whole, 3), np.uint8) if whole else None
        boxes = np.empty((count, num_patches, 4), np.float32)
        classes = np.empty(count, np.int64)
        keys: list[str] = []
        damaged: list[str] = []
        for raw in samples:
            meta = parse_meta(raw, labels, num_patches)
            try:
                image = decode(raw)
            except ValueError:
                damaged.append(raw.key)
                continue
            row = len(keys)
            if as_images:
                resize_square(image, side, main[row])
            else:
                main[row] = cut_patches_opencv(image, meta.boxes, side)
            if wholes is not None:
                resize_square(image, whole, wholes[row])
            boxes[row], classes[row] = meta.boxes, meta.label
            keys.append(raw.key)
        found = len(keys)
        return Batch(
            step=step,
            boxes=torch.from_numpy(boxes[:found]),
            labels=torch.from_numpy(classes[:found]),
            keys=keys,
            damaged=damaged,
            images=_channels_first(main[:found]) if as_images else None,
            patches=None if as_images else torch.from_numpy(main[:found]),
            whole=None if wholes is None else _channels_first(wholes[:found]),
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
            raise ValueError(last.removeprefix("ValueError: ")) from None


def _channels_first(images: NDArray[np.uint8]) -> Tensor:
    # A view: NHWC memory is what channels_last means.
    return torch.from_numpy(images).permute(0, 3, 1, 2)
