"""Are the shards what the manifest says, and what do their boxes look like?"""

import hashlib
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from shards.manifest import SPLITS, Manifest, ShardEntry, file_problems, load_labels
from shards.objects import file_sizes, join_url, read_bytes
from shards.pack.executors import Run, run_here
from shards.samples import Sample, decode_sample, read_raw, read_shard
from shards.shard_cache import changed
from vgse.errors import UserError
from vgse.files import written_whole

_COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#0bb", "#f032e6", "#9a6324"]


def check(manifest: Manifest, *, run: Run = run_here) -> list[str]:
    """Every problem of the shards, a line each; empty if they are sound.

    Reads all of them: lengths, checksums, every picture and its boxes, class counts, labels.npy,
    and keys that stand for two samples.
    """
    found = file_problems(manifest)
    there = file_sizes(manifest.url)
    shards = [shard for shard in manifest.shards if shard.file in there]
    results = sorted(run(partial(_check_shard, manifest), shards), key=lambda result: result[0])
    for _, problems, _, _ in results:
        found += problems
    counts = Counter(key for _, _, keys, _ in results for key in set(keys))
    found += [f"key {key!r} is in {n} shards; pack again" for key, n in counts.items() if n > 1]
    try:
        expected = load_labels(manifest)
    except UserError as error:
        return [*found, str(error)]
    ends = np.cumsum(manifest.shards.counts)
    rows = {shard.file: row for row, shard in enumerate(manifest.shards)}
    for file, problems, _, labels in results:
        end = int(ends[rows[file]])
        if not problems and labels != expected[end - len(labels) : end].tolist():
            found.append(f"labels.npy differs from the classes in {file!r}; pack again")
    return found


def _check_shard(
    manifest: Manifest, shard: ShardEntry
) -> tuple[str, list[str], list[str], list[int]]:
    """File, problems, keys and labels of one shard."""
    found: list[str] = []
    keys: list[str] = []
    labels: list[int] = []
    digest = hashlib.sha256(read_bytes(join_url(manifest.url, shard.file))).hexdigest()
    if digest != shard.sha256:
        found.append(f"{shard.file}: {changed(digest, shard)}")
    try:
        for raw in read_raw(manifest, shard):
            keys.append(raw.key)
            try:
                labels.append(decode_sample(raw, manifest).label)
            except UserError as error:
                found.append(str(error))
    except UserError as error:
        found.append(str(error))
    return shard.file, found, keys, labels


def draw_samples(manifest: Manifest, path: str, *, columns: int = 8, side: int = 160) -> str:
    """Write a sheet of pictures with their boxes, some of each split, as PNG; returns path."""
    samples: list[tuple[str, Sample]] = []
    for split in SPLITS:
        for shard in manifest.shards_of(split)[:1]:
            stop = min(columns, shard.count)
            samples += [(split, sample) for sample in read_shard(manifest, shard, stop=stop)]
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * (side + 8) + 8, rows * (side + 28) + 8), "white")
    for number, (split, sample) in enumerate(samples):
        x, y = 8 + number % columns * (side + 8), 8 + number // columns * (side + 28)
        tile = Image.fromarray(sample.image).resize((side, side))
        for index, box in enumerate(np.clip(sample.boxes * side, 0, side - 1).tolist()):
            drift = index % 3  # boxes of a grid overlap: a pixel's drift keeps their edges apart
            x0, y0, x1, y1 = box[0] + drift, box[1] + drift, box[2] - drift, box[3] - drift
            if x1 > x0 and y1 > y0:
                outline = _COLOURS[index % len(_COLOURS)]
                ImageDraw.Draw(tile).rectangle((x0, y0, x1, y1), outline=outline)
        sheet.paste(tile, (x, y))
        name = manifest.class_names[sample.label]
        ImageDraw.Draw(sheet).text((x, y + side + 2), f"{name[:24]}\n{split}", "black", font_size=9)
    with written_whole(Path(path)) as stream:
        sheet.save(stream, format="PNG")
    return path
