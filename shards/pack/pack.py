"""From a folder of images to shards and their manifest."""

import hashlib
import json
import os
import secrets
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from io import BufferedRandom
from pathlib import Path

import cv2
import numpy as np
import webdataset as wds
from numpy.typing import NDArray

from shards import manifest as manifests
from shards.config import PackConfig, validate
from shards.datasets.classes import hash_key
from shards.datasets.dataset import DataSet, read_source
from shards.datasets.layouts import SourceImage
from shards.datasets.listing import visible
from shards.images import encode_jpeg, load_rgb
from shards.manifest import SPLITS, ImageSpec, Manifest, PatchSpec, ShardEntry, file_problems
from shards.objects import FULL, file_sizes
from shards.pack.executors import Run, run_here
from vgse.errors import UserError
from vgse.files import written_whole
from vgse.images.patches import grid_boxes
from vgse.images.watershed import watershed_boxes

RECORDS = ".packing"
STATE = ".packed.jsonl"  # what tells the next pack which shards still hold what the pictures hold
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

    @cached_property
    def stamps(self) -> str:
        """sha256 of the sizes and times of its images, as they were listed."""
        return hashlib.sha256(b"".join(image.stamp for image in self.images)).hexdigest()


@dataclass(frozen=True)
class PackedShard:
    """A finished shard: labels [count] of its samples, and images left out, with causes."""

    entry: ShardEntry
    labels: Sequence[int]
    damaged: list[str]
    largest: int


@dataclass(frozen=True)
class Progress:
    """How far packing is, in images."""

    done: int
    total: int
    damaged: int


def pack(
    config: PackConfig,
    *,
    run: Run = run_here,
    on_progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Pack config.source into config.out and return the manifest that now stands there.

    The same input, settings and seed give the same bytes. Finished shards of the same plan are
    kept, except those of pictures whose size or times have changed: these are made again. A folder
    with anything packed otherwise is refused.
    """
    validate(config)
    config = replace(config, out=os.path.abspath(os.path.expanduser(config.out)))
    make_boxes(np.zeros((64, 64, 3), np.uint8), config)  # refuses bad numbers before any work
    data = read_source(config)
    specs = plan_shards(data, config)
    total = sum(len(spec.images) for spec in specs)

    def report(done: int, damaged: int) -> None:
        if on_progress:
            on_progress(Progress(done, total, damaged))

    out = Path(config.out)
    before = _find_packed(out, specs, data)
    kept = _kept_shards(before, specs) if before else {}
    of_old_plan = before is not None and before.plan != specs[0].plan
    if before and (len(kept) == len(specs) or (of_old_plan and not file_problems(before))):
        report(total, before.num_damaged)
        return before
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _finish(_pack_all(specs, kept, total, run, report), data, config, specs)
    except OSError as error:
        hint = "free some space" if error.errno in FULL else "check the folder"
        raise UserError(
            f"{error.filename or out}: {error.strerror or error}; {hint}, then run the same "
            "command again: finished shards are kept"
        ) from error


def plan_shards(data: DataSet, config: PackConfig) -> list[ShardSpec]:
    """The shards to be made, each with its images: a pure function of list and settings.

    Images of a split are put in an order drawn by hash, so that every shard mixes classes.
    """
    names = [entry.name for entry in data.classes]
    specs: list[ShardSpec] = []
    first = 0
    for split in SPLITS:
        images = [image for image in data.images if image.part == split]
        images.sort(key=lambda image: hash_key("order", config.seed, image.source))
        starts = range(0, len(images), config.images_per_shard)
        digits = max(6, len(str(len(starts) - 1)))  # all alike, so that names sort as numbers
        for number, start in enumerate(starts):
            chosen = images[start : start + config.images_per_shard]
            file = f"{split}-{number:0{digits}d}.tar"
            specs.append(ShardSpec(config, file, split, first, chosen, names, plan=""))
            first += len(chosen)
    plan = _plan_hash(specs, data, config)
    return [replace(spec, plan=plan) for spec in specs]


def _patch_spec(config: PackConfig) -> PatchSpec:
    params = {"overlap": config.overlap} if config.patches == "grid" else {}
    return PatchSpec(config.patches, config.num_patches, params)


def _plan_hash(
    specs: list[ShardSpec], data: DataSet, config: PackConfig, *, with_sizes: bool = False
) -> str:
    digest = hashlib.sha256()
    settings = {
        "version": 1,  # of what is in the tars
        "stride": STRIDE,
        "classes": [asdict(entry) for entry in data.classes],
        "patches": asdict(_patch_spec(config)),
        "title": data.title,
        "licence": config.licence,
        "settings": [config.short_side, config.upscale, config.quality, config.max_pixels],
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for spec in specs:
        for image in spec.images:
            row = [
                spec.split,
                image.source,
                image.class_name,
                *([image.size] if with_sizes else []),
            ]
            digest.update(json.dumps(row).encode())
        digest.update(b"|")
    return digest.hexdigest()


def _find_packed(out: Path, specs: list[ShardSpec], data: DataSet) -> Manifest | None:
    """The manifest that an earlier pack of the same plan left; UserError where one of another
    plan did."""
    plan, config = specs[0].plan, specs[0].config
    remedy = "from other images or settings; choose another --out or remove the folder"
    if (out / manifests.FILE).exists():
        manifest = manifests.load_manifest(str(out), check_files=False)
        # Plans of earlier versions held the sizes of the pictures.
        old = manifest.plan != plan and _plan_hash(specs, data, config, with_sizes=True)
        if manifest.plan not in (plan, old):
            raise UserError(f"{out / manifests.FILE}: packed {remedy}")
        return manifest
    for record in sorted(out.glob(f"{RECORDS}/*.json")):
        try:
            theirs = json.loads(record.read_text()).get("plan")
        except json.JSONDecodeError:
            continue
        if theirs != plan:
            raise UserError(f"{out}: holds part of a pack {remedy}")
    return None


def _kept_shards(before: Manifest, specs: list[ShardSpec]) -> dict[str, PackedShard]:
    """The shards of an earlier pack that are whole and whose pictures have the stamps of then."""
    try:
        lines = Path(before.url, STATE).read_text(encoding="utf-8").splitlines()
        rows = {row["file"]: row for row in map(json.loads, lines)}
        labels = manifests.load_labels(before)
        table = before.shards
        sizes = file_sizes(before.url)
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError, UserError):
        return {}
    parts = np.split(labels, np.cumsum(table.counts)[:-1])
    packed = {entry.file: (entry, part) for entry, part in zip(table, parts, strict=True)}
    kept = {}
    for spec in specs:
        row = rows.get(spec.file)
        if row is None or row["stamps"] != spec.stamps:
            continue
        # A shard whose pictures were all damaged is not there.
        empty = ShardEntry(spec.file, spec.split, 0, 0, ""), labels[:0]
        entry, part = packed.get(spec.file, empty)
        if sizes.get(spec.file, 0) == entry.bytes:
            damaged, largest = row["damaged"], row["largest"]
            kept[spec.file] = PackedShard(entry, part.tolist(), damaged, largest)
    return kept


def _pack_all(
    specs: list[ShardSpec],
    kept: dict[str, PackedShard],
    total: int,
    run: Run,
    report: Callable[[int, int], None],
) -> list[PackedShard]:
    config = specs[0].config
    packed = dict(kept)
    damaged = [line for shard in kept.values() for line in shard.damaged]
    done = sum(shard.entry.count for shard in kept.values()) + len(damaged)
    for shard in run(pack_shard, [spec for spec in specs if spec.file not in kept]):
        # Four bytes a label, not the forty of an integer in a list.
        packed[shard.entry.file] = replace(shard, labels=array("I", shard.labels))
        damaged += shard.damaged
        done += shard.entry.count + len(shard.damaged)
        report(done, len(damaged))
        if len(damaged) > config.max_damaged * total:
            share = 100 * len(damaged) / total
            raise UserError(
                f"{config.source}: {len(damaged)} of {total} images ({share:.1f}%) are damaged, "
                f"more than max_damaged={config.max_damaged} allows: "
                f"{', '.join(sorted(damaged)[:3])}; repair or remove them, or raise --max_damaged"
            )
    return [packed[spec.file] for spec in specs]


def _finish(
    packed: list[PackedShard], data: DataSet, config: PackConfig, specs: list[ShardSpec]
) -> Manifest:
    out = Path(config.out)
    for shard in packed:
        if not shard.entry.count:
            (out / shard.entry.file).unlink(missing_ok=True)
    kept = [shard for shard in packed if shard.entry.count]
    damaged = sorted(line for shard in packed for line in shard.damaged)
    if damaged:
        with written_whole(out / manifests.DAMAGED) as stream:
            stream.writelines(f"{line}\n".encode() for line in damaged)
    else:  # which an earlier pack may have left
        (out / manifests.DAMAGED).unlink(missing_ok=True)
    names = [entry.name for entry in data.classes]
    counts = {
        split: Counter(n for s in kept if s.entry.split == split for n in s.labels)
        for split in SPLITS
    }
    labels = np.concatenate([np.empty(0, np.uint32), *(shard.labels for shard in kept)])
    manifest = Manifest(
        url=config.out,
        version=manifests.VERSION,
        classes=data.classes,
        class_counts={
            split: {names[label]: n for label, n in sorted(found.items())}
            for split, found in counts.items()
        },
        patches=_patch_spec(config),
        image=ImageSpec(
            config.short_side, config.quality, max((s.largest for s in kept), default=0)
        ),
        source=data.title,
        licence=config.licence,
        damaged=damaged[:100],
        num_damaged=len(damaged),
        stride=STRIDE,
        plan=specs[0].plan,
        labels_sha256=manifests.write_labels(out, labels, len(names)),
        shards_sha256=manifests.write_table(out, [shard.entry for shard in kept]),
        left_out=data.left_out,
    )
    for problem in manifests.find_problems(manifest):
        raise UserError(f"{out}: {problem}")
    with written_whole(out / manifests.FILE) as stream:
        stream.write(manifests.manifest_json(manifest).encode())
    with written_whole(out / STATE) as stream:
        for spec, shard in zip(specs, packed, strict=True):
            row = {"damaged": shard.damaged, "largest": shard.largest}
            line = json.dumps({"file": spec.file, "stamps": spec.stamps, **row})
            stream.write(f"{line}\n".encode())
    shutil.rmtree(out / RECORDS, ignore_errors=True)
    return manifests.load_manifest(config.out, check_files=False)


def pack_shard(spec: ShardSpec) -> PackedShard:
    """Write the shard's tar, or find it finished; damaged images are left out and listed.

    The tar appears under its name only when complete, and the record that says so after it.
    """
    done = _read_record(spec)
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
    content = json.dumps({"plan": spec.plan, "stamps": spec.stamps, **asdict(packed)})
    with written_whole(records / f"{spec.file}.json") as record:
        record.write(content.encode())
    return packed


def _read_record(spec: ShardSpec) -> PackedShard | None:
    """The shard as an earlier run of the same plan finished it; None if it has to be made."""
    try:
        record = json.loads(Path(spec.config.out, RECORDS, f"{spec.file}.json").read_text())
        if (record.pop("plan"), record.pop("stamps")) != (spec.plan, spec.stamps):
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
                damaged.append(visible(f"{image.source}: {error}"))
                continue
            if len(found) % STRIDE == 0:
                offsets.append(writer.tarstream.offset)
            writer.write(sample)
            found.append(spec.class_names.index(image.class_name))
            largest = max(largest, side)
    file.seek(0)
    entry = ShardEntry(
        file=spec.file,
        split=spec.split,
        count=len(found),
        bytes=os.fstat(file.fileno()).st_size,
        sha256=hashlib.file_digest(file, "sha256").hexdigest(),
        offsets=offsets,
    )
    return PackedShard(entry, found, damaged, largest)


def _encode(image: SourceImage, number: int, spec: ShardSpec) -> tuple[dict[str, str | bytes], int]:
    """WebDataset's sample, and the shorter side of its picture in pixels.

    Its key is unique, sorts in packing order and holds nothing of the file's name.
    """
    config = spec.config
    pixels = load_rgb(image.path, config.short_side, config.upscale, config.max_pixels)
    height, width = pixels.shape[:2]
    meta = {
        "class": image.class_name,
        "source": image.source,
        "boxes": [[round(float(x), 5) for x in box] for box in make_boxes(pixels, config)],
        "size": [width, height],
    }
    sample: dict[str, str | bytes] = {
        "__key__": f"{number:08d}-{hashlib.sha256(image.source.encode()).hexdigest()[:8]}",
        "jpg": encode_jpeg(pixels, config.quality),
        "json": json.dumps(meta, separators=(",", ":")).encode(),
    }
    return sample, min(height, width)
