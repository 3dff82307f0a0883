"""From a folder of images to shards and their manifest."""

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from shards.config import PackConfig, validate
from shards.datasets.classes import hash_key
from shards.datasets.dataset import DataSet, read_source
from shards.datasets.layout import SourceImage
from shards.manifest import (
    FILE,
    LABELS,
    SPLITS,
    VERSION,
    ImageSpec,
    Manifest,
    PatchSpec,
    file_problems,
    find_problems,
    load_manifest,
    manifest_json,
)
from shards.pack.encode import (
    RECORDS,
    STRIDE,
    PackedShard,
    ShardSpec,
    make_boxes,
    pack_shard,
)
from shards.pack.executors import Run, run_here
from vgse.errors import UserError
from vgse.files import written_whole


@dataclass(frozen=True)
class Progress:
    """How far packing is, in images."""

    done: int
    total: int
    damaged: int
    dropped: int = 0
    """Training images of unseen classes, which are in no split."""


def pack(
    config: PackConfig,
    *,
    run: Run = run_here,
    on_progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Pack config.source into config.out and return the manifest that now stands there.

    The same input, settings and seed give the same bytes. Shards that an interrupted run of
    the same plan finished are kept; a folder with a finished pack of the same plan is left
    as it is, one with anything packed otherwise is refused.
    """
    validate(config)
    config = replace(config, out=os.path.abspath(os.path.expanduser(config.out)))
    make_boxes(np.zeros((64, 64, 3), np.uint8), config)  # refuses bad numbers before any work
    data = read_source(config)
    specs = plan_shards(data, config)
    out = Path(config.out)
    finished = _find_finished(out, specs[0].plan)
    if finished is not None:
        if on_progress:
            total = sum(len(spec.images) for spec in specs)
            on_progress(Progress(total, total, len(finished.damaged), data.dropped))
        return finished
    try:
        out.mkdir(parents=True, exist_ok=True)
        packed = _run(specs, data.dropped, config, run, on_progress)
        return _finish(packed, data, config, specs[0].plan)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "free some space" if full else "check the folder"
        raise UserError(
            f"{error.filename or out}: {error.strerror or error}; {hint}, then run the same "
            "command again: finished shards are kept"
        ) from error


def plan_shards(data: DataSet, config: PackConfig) -> list[ShardSpec]:
    """The shards to be made, each with its images: a pure function of list and settings.

    Images of a split are put in an order drawn by hash, so that every shard mixes classes.
    """
    ordered: list[tuple[str, list[SourceImage]]] = []
    for split in SPLITS:
        images = [image for image in data.images if image.part == split]
        images.sort(key=lambda image: hash_key("order", config.seed, image.source))
        for start in range(0, len(images), config.images_per_shard):
            ordered.append((split, images[start : start + config.images_per_shard]))
    plan = _plan_hash(ordered, data, config)
    specs, first, numbers = [], 0, dict.fromkeys(SPLITS, 0)
    for split, images in ordered:
        specs.append(
            ShardSpec(
                config=config,
                file=f"{split}-{numbers[split]:06d}.tar",
                split=split,
                first=first,
                images=images,
                class_names=[entry.name for entry in data.classes],
                plan=plan,
            )
        )
        first += len(images)
        numbers[split] += 1
    return specs


def _patch_spec(config: PackConfig) -> PatchSpec:
    params = {"overlap": config.overlap} if config.patches == "grid" else {}
    return PatchSpec(config.patches, config.num_patches, params)


def _plan_hash(
    ordered: list[tuple[str, list[SourceImage]]], data: DataSet, config: PackConfig
) -> str:
    digest = hashlib.sha256()
    settings = {
        "version": VERSION,
        "stride": STRIDE,
        "classes": [asdict(entry) for entry in data.classes],
        "patches": asdict(_patch_spec(config)),
        "title": data.title,
        "licence": config.licence,
        "settings": [config.short_side, config.upscale, config.quality, config.max_pixels],
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for split, images in ordered:
        for image in images:
            path = Path(image.path)
            size = path.stat().st_size if path.exists() else -1
            row = [split, image.source, image.class_name, size]
            digest.update(json.dumps(row).encode())
        digest.update(b"|")
    return digest.hexdigest()


def _find_finished(out: Path, plan: str) -> Manifest | None:
    if (out / FILE).exists():
        manifest = load_manifest(str(out), check_files=False)
        if manifest.plan != plan:
            raise UserError(
                f"{out / FILE}: packed from other images or settings; "
                "choose another --out or remove the folder"
            )
        return None if file_problems(manifest) else manifest
    for record in sorted(out.glob(f"{RECORDS}/*.json")):
        try:
            theirs = json.loads(record.read_text()).get("plan")
        except json.JSONDecodeError:
            continue
        if theirs != plan:
            raise UserError(
                f"{out}: holds part of a pack from other images or settings; "
                "choose another --out or remove the folder"
            )
    return None


def _run(
    specs: list[ShardSpec],
    dropped: int,
    config: PackConfig,
    run: Run,
    on_progress: Callable[[Progress], None] | None,
) -> list[PackedShard]:
    total = sum(len(spec.images) for spec in specs)
    damaged: list[str] = []
    packed = []
    done = 0
    results = run(pack_shard, specs)
    for shard in results:
        packed.append(shard)
        damaged += shard.damaged
        done += shard.entry.count + len(shard.damaged)
        if on_progress:
            on_progress(Progress(done, total, len(damaged), dropped))
        if len(damaged) > config.max_damaged * total:
            share = 100 * len(damaged) / total
            raise UserError(
                f"{config.source}: {len(damaged)} of {total} images ({share:.1f}%) are damaged, "
                f"more than max_damaged={config.max_damaged} allows: "
                f"{', '.join(sorted(damaged)[:3])}; repair or remove them, or raise --max_damaged"
            )
    order = {spec.file: number for number, spec in enumerate(specs)}
    return sorted(packed, key=lambda shard: order[shard.entry.file])


def _finish(packed: list[PackedShard], data: DataSet, config: PackConfig, plan: str) -> Manifest:
    out = Path(config.out)
    for shard in packed:
        if not shard.entry.count:
            (out / shard.entry.file).unlink(missing_ok=True)
    kept = [shard for shard in packed if shard.entry.count]
    labels = io.BytesIO()
    small = np.uint16 if len(data.classes) <= 1 << 16 else np.uint32
    every = np.array([label for shard in kept for label in shard.labels], small)
    np.save(labels, every, allow_pickle=False)
    with written_whole(out / LABELS) as stream:
        stream.write(labels.getvalue())
    manifest = Manifest(
        url=config.out,
        version=VERSION,
        classes=data.classes,
        shards=[shard.entry for shard in kept],
        patches=_patch_spec(config),
        image=ImageSpec(
            config.short_side, config.quality, max((s.largest for s in kept), default=0)
        ),
        source=data.title,
        licence=config.licence,
        damaged=sorted(line for shard in packed for line in shard.damaged),
        stride=STRIDE,
        plan=plan,
        labels_sha256=hashlib.sha256(labels.getvalue()).hexdigest(),
    )
    for problem in find_problems(manifest):
        raise UserError(f"{out}: {problem}")
    with written_whole(out / FILE) as stream:
        stream.write(manifest_json(manifest).encode())
    shutil.rmtree(out / RECORDS, ignore_errors=True)
    return manifest
