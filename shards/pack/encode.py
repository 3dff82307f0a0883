"""One shard, made from a self-contained description: the unit of work of packing."""

import hashlib
import json
import os
import secrets
from collections import Counter
from dataclasses import asdict, dataclass
from io import BufferedRandom
from pathlib import Path

import cv2
import numpy as np
import webdataset as wds
from numpy.typing import NDArray

from shards.config import PackConfig
from shards.datasets.layout import SourceImage
from shards.images import encode_jpeg, load_rgb
from shards.manifest import ShardEntry
from vgse.errors import UserError
from vgse.files import written_whole
from vgse.images.patches import grid_boxes
from vgse.images.watershed import watershed_boxes

RECORDS = ".packing"
STRIDE = 64


@dataclass(frozen=True)
class ShardSpec:
    """All that a shard depends on; first is the number of its first image in the data set."""

    config: PackConfig
    file: str
    split: str
    first: int
    images: list[SourceImage]
    class_names: list[str]
    plan: str


@dataclass(frozen=True)
class PackedShard:
    """A finished shard: labels [count] of its samples, and images left out, with causes."""

    entry: ShardEntry
    labels: list[int]
    damaged: list[str]
    largest: int


def pack_shard(spec: ShardSpec) -> PackedShard:
    """Write the shard's tar, or find it finished, and return what it holds.

    The tar appears under its name only when complete; the record beside it, which says that
    it is, only after that. Damaged images are left out and listed.
    """
    done = read_record(spec)
    if done is not None:
        return done
    records = Path(spec.config.out, RECORDS)
    records.mkdir(parents=True, exist_ok=True)
    part = records / f"{spec.file}.{secrets.token_hex(4)}.tmp"
    try:
        with open(part, "w+b") as file:
            packed = _write_tar(spec, file)
            os.fsync(file.fileno())
        os.replace(part, Path(spec.config.out, spec.file))
    finally:
        part.unlink(missing_ok=True)
    content = json.dumps({"plan": spec.plan, **asdict(packed)})
    with written_whole(records / f"{spec.file}.json") as record:
        record.write(content.encode())
    return packed


def read_record(spec: ShardSpec) -> PackedShard | None:
    """The shard as an earlier run of the same plan finished it; None if it has to be made."""
    try:
        record = json.loads(Path(spec.config.out, RECORDS, f"{spec.file}.json").read_text())
        if record.pop("plan") != spec.plan:
            return None
        packed = PackedShard(**{**record, "entry": ShardEntry(**record["entry"])})
        with open(Path(spec.config.out, spec.file), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return None
    return packed if digest == packed.entry.sha256 else None


def make_boxes(image: NDArray[np.uint8], config: PackConfig) -> NDArray[np.float32]:
    """Boxes float32 [N, 4] in 0..1 of a uint8 [H, W, 3] image."""
    if config.patches == "grid":
        return grid_boxes(config.num_patches, config.overlap)
    return watershed_boxes(image, config.num_patches)


def _write_tar(spec: ShardSpec, file: BufferedRandom) -> PackedShard:
    cv2.setNumThreads(0)  # one process a core already
    labels = {name: label for label, name in enumerate(spec.class_names)}
    found: list[int] = []
    damaged: list[str] = []
    offsets: list[int] = []
    largest = 0
    # Constant owner, mode and time: equal samples give equal bytes.
    with wds.TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False) as writer:
        for number, image in enumerate(spec.images, spec.first):
            try:
                sample, side = _encode(image, number, spec)
            except UserError as error:
                damaged.append(f"{image.source}: {error}")
                continue
            if len(found) % STRIDE == 0:
                offsets.append(writer.tarstream.offset)
            writer.write(sample)
            found.append(labels[image.class_name])
            largest = max(largest, side)
    file.seek(0)
    entry = ShardEntry(
        file=spec.file,
        split=spec.split,
        count=len(found),
        bytes=os.fstat(file.fileno()).st_size,
        sha256=hashlib.file_digest(file, "sha256").hexdigest(),
        class_counts=dict(sorted(Counter(spec.class_names[label] for label in found).items())),
        offsets=offsets,
    )
    return PackedShard(entry, found, damaged, largest)


def _encode(image: SourceImage, number: int, spec: ShardSpec) -> tuple[dict[str, str | bytes], int]:
    """WebDataset's sample, and the shorter side of its picture in pixels.

    Its key is unique, sorts in packing order and holds nothing of the file's name.
    """
    pixels = load_rgb(
        image.path,
        short_side=spec.config.short_side,
        upscale=spec.config.upscale,
        max_pixels=spec.config.max_pixels,
    )
    height, width = pixels.shape[:2]
    meta = {
        "class": image.class_name,
        "source": image.source,
        "boxes": [[round(float(x), 5) for x in box] for box in make_boxes(pixels, spec.config)],
        "size": [width, height],
    }
    sample: dict[str, str | bytes] = {
        "__key__": f"{number:08d}-{hashlib.sha256(image.source.encode()).hexdigest()[:8]}",
        "jpg": encode_jpeg(pixels, spec.config.quality),
        "json": json.dumps(meta, separators=(",", ":")).encode(),
    }
    return sample, min(height, width)
