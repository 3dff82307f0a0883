"""Shards for the benchmark of the accelerator, and how they are read.

Pictures are collages of the demo's icons on coloured grain, about 500 x 384 pixels and 55 kB: a
machine with nothing but torch and torchvision has no photographs. They are packed and read by
`shards` where its libraries are installed, else by a plain tar reader with PIL.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vgse.images.patches import cut_patches, grid_boxes
from vgse.training.step import StepData

ICONS = Path(__file__).resolve().parents[2] / "demo" / "shards" / "train-000000.tar"
CLASSES = 8
STORED_SIDE = 384
SIZES = [(512, 384), (384, 512), (576, 384), (500, 384)]  # width, height


@dataclass(frozen=True)
class Source:
    """Where pictures lie, and what comes out of them."""

    folder: Path
    ours: bool  # packed and read by `shards`
    batch_size: int
    num_patches: int
    patch_size: int
    loader_workers: int
    on_device: bool  # hand over pictures, to be cut on the accelerator


def shards_are_usable() -> bool:
    """Whether the libraries of `shards` are installed."""
    try:
        import shards.loader
        import shards.pack.pack  # noqa: F401
    except ImportError:
        return False
    return True


def make_pictures(folder: Path, count: int, processes: int) -> float:
    """Write `count` JPEGs, a folder a class; returns their mean size in bytes."""
    for number in range(CLASSES):
        (folder / f"class{number}").mkdir(parents=True)
    with tarfile.open(ICONS) as tar:
        names = [name for name in tar.getnames() if name.endswith(".jpg")][:64]
        icons = [tar.extractfile(name).read() for name in names]  # type: ignore[union-attr]
    write = partial(_write, folder, icons)
    if processes < 2:
        sizes = [write(number) for number in range(count)]
    else:
        with ProcessPoolExecutor(processes) as pool:
            sizes = list(pool.map(write, range(count), chunksize=16))
    return float(np.mean(sizes))


def _write(folder: Path, icons: list[bytes], number: int) -> int:
    data = io.BytesIO()
    _collage(icons, np.random.default_rng(number)).save(data, "JPEG", quality=90)
    path = folder / f"class{number % CLASSES}" / f"{number:05d}.jpg"
    path.write_bytes(data.getvalue())
    return len(data.getvalue())


def _collage(icons: list[bytes], rng: np.random.Generator) -> Image.Image:
    width, height = SIZES[rng.integers(len(SIZES))]

    def grain(side: int) -> NDArray[np.float32]:
        small = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)

    picture = 0.7 * grain(6) + 0.2 * grain(60) + 0.1 * grain(200)
    for _ in range(8):
        side = int(rng.integers(90, 260))
        icon = Image.open(io.BytesIO(icons[rng.integers(len(icons))])).convert("RGB")
        x, y = (int(rng.integers(0, most - side)) for most in (width, height))
        pasted = np.asarray(icon.resize((side, side)), np.float32) / 255
        picture[y : y + side, x : x + side] *= 0.15 + 0.85 * pasted
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def pack_pictures(pictures: Path, source: Source) -> None:
    """Tar shards of the pictures, with boxes."""
    if source.ours:
        from shards.config import PackConfig
        from shards.pack.pack import pack

        pack(
            PackConfig(
                source=f"folder:{pictures}",
                out=str(source.folder),
                unseen_fraction=1 / CLASSES,
                val_fraction=1 / CLASSES,
                test_fraction=0.0,
                num_patches=source.num_patches,
                short_side=STORED_SIDE,
                images_per_shard=256,
                title="collages",
                workers=1,
            )
        )
        return
    source.folder.mkdir(parents=True)
    boxes = grid_boxes(source.num_patches).tolist()
    files = sorted(pictures.glob("*/*.jpg"), key=lambda path: path.name)
    for first in range(0, len(files), 256):
        with tarfile.open(source.folder / f"train-{first // 256:06d}.tar", "w") as tar:
            for path in files[first : first + 256]:
                meta = {"class": path.parent.name, "source": path.name, "boxes": boxes}
                for suffix, data in ((".jpg", path.read_bytes()), (".json", json.dumps(meta))):
                    content = data if isinstance(data, bytes) else data.encode()
                    member = tarfile.TarInfo(path.stem + suffix)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def epoch(source: Source, number: int) -> Iterator[StepData]:
    """The batches of one epoch, on the CPU; their sizes may differ by one."""
    return _ours(source, number) if source.ours else _plain(source)


def _ours(source: Source, number: int) -> Iterator[StepData]:
    from shards.loader import Batches, Cut, make_loader
    from shards.manifest import load_manifest
    from shards.sampler import order_of, select, split_ranges, start_of

    manifest = load_manifest(str(source.folder), check_files=False)
    selection = select(manifest, "train")
    cursor = start_of(manifest, selection, seed=0, epoch=number)
    workers, size = source.loader_workers, source.batch_size
    plan = split_ranges(cursor.remaining, 1, workers, size)
    cut = Cut("images", STORED_SIDE) if source.on_device else Cut("patches", source.patch_size)
    batches = Batches(manifest, selection, order_of(cursor, selection), plan, 0, cut)
    # As distributed.train.data does it, whose imports a bare machine lacks.
    for batch in make_loader(batches, pin_memory=source.on_device):
        ids = [hashlib.blake2b(key.encode(), digest_size=7).digest() for key in batch.keys]
        numbers = torch.tensor([int.from_bytes(digest, "little") for digest in ids])
        if batch.patches is not None:
            inputs, boxes = batch.patches.permute(0, 1, 4, 2, 3), None
        else:
            assert batch.images is not None
            inputs, boxes = batch.images, batch.boxes
        yield _step_data(source, inputs, boxes, batch.labels % CLASSES, numbers)


def _plain(source: Source) -> Iterator[StepData]:
    loader = DataLoader(
        _PlainTar(source),
        batch_size=None,
        num_workers=source.loader_workers,
        pin_memory=source.on_device,
        prefetch_factor=2 if source.loader_workers else None,
        multiprocessing_context="forkserver" if source.loader_workers else None,
    )
    for pictures, boxes, labels, numbers in loader:
        inputs = pictures
        if not source.on_device:
            inputs, boxes = cut_patches(pictures, boxes, source.patch_size), None
        yield _step_data(source, inputs, boxes, labels, numbers)


def _step_data(
    source: Source,
    inputs: torch.Tensor,
    boxes: torch.Tensor | None,
    labels: torch.Tensor,
    numbers: torch.Tensor,
) -> StepData:
    weights = torch.ones(len(labels))
    total, size = len(labels), 0 if boxes is None else source.patch_size
    return StepData(inputs, labels, numbers, weights, total, None, boxes, size)


class _PlainTar(IterableDataset[tuple[torch.Tensor, ...]]):
    """Pictures squeezed to squares, boxes, labels and numbers; loader workers share the shards."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        info = get_worker_info()
        own, of = (0, 1) if info is None else (info.id, info.num_workers)
        rows: list[tuple[NDArray[np.uint8], list[list[float]], int, int]] = []
        for path in sorted(self.source.folder.glob("*.tar"))[own::of]:
            with tarfile.open(path) as tar:
                members = iter(tar)
                for picture, text in zip(members, members, strict=True):
                    meta = json.load(tar.extractfile(text))  # type: ignore[arg-type]
                    image = Image.open(tar.extractfile(picture)).convert("RGB")  # type: ignore[arg-type]
                    square = np.asarray(image.resize((STORED_SIDE, STORED_SIDE)))
                    label = int(meta["class"].removeprefix("class"))
                    rows.append((square, meta["boxes"], label, int(Path(picture.name).stem)))
                    if len(rows) == self.source.batch_size:
                        yield _stacked(rows)
                        rows = []


def _stacked(
    rows: list[tuple[NDArray[np.uint8], list[list[float]], int, int]],
) -> tuple[torch.Tensor, ...]:
    pictures, boxes, labels, numbers = zip(*rows, strict=True)
    return (
        torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2),
        torch.tensor(boxes, dtype=torch.float32),
        torch.tensor(labels),
        torch.tensor(numbers),
    )
