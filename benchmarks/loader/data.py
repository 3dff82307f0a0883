"""The same pictures as a folder of JPEGs, as tar shards of these, and as the shards we pack."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import webdataset

from benchmarks.loader.samples import bare_tar
from benchmarks.photographs import write_photographs
from shards.config import PackConfig
from shards.manifest import (
    FILE,
    LABELS,
    ImageSpec,
    Manifest,
    ShardEntry,
    load_manifest,
    manifest_json,
    write_table,
)
from shards.pack.pack import pack
from shards.samples import read_raw

UNSEEN = "hopper"  # packing wants an unseen class; its pictures are not read
SHARD = 128


@dataclass(frozen=True)
class Data:
    """Folder of class folders; shards of its JPEGs as they are; shards of a short side of 384."""

    photographs: Path
    originals: Manifest
    packed: Manifest


def make_data(folder: Path, count: int) -> Data:
    """About `count` pictures of seen classes, in all three forms."""
    photographs = folder / "photographs"
    write_photographs(photographs, count * 9 // 8)
    unseen = folder / "unseen.txt"
    unseen.write_text(UNSEEN + "\n")
    pack(
        PackConfig(
            source=f"folder:{photographs}",
            out=str(folder / "packed"),
            unseen=str(unseen),
            test_fraction=0.0,
            images_per_shard=SHARD,
            workers=1,
        )
    )
    packed = load_manifest(str(folder / "packed"))
    return Data(photographs, store_originals(packed, photographs, folder / "originals"), packed)


def store_originals(packed: Manifest, photographs: Path, out: Path) -> Manifest:
    """Shards with the samples of `packed` in the same order, each with its file's own bytes."""
    out.mkdir()
    entries: list[ShardEntry] = []
    for shard in packed.shards:
        offsets = []
        with open(out / shard.file, "wb") as file:
            tar = webdataset.TarWriter(file, mtime=0, encoder=False)
            for raw in read_raw(packed, shard):
                if raw.index % packed.stride == 0:
                    offsets.append(tar.tarstream.offset)
                source = json.loads(raw.json)["source"]
                jpeg = (photographs / source).read_bytes()
                tar.write({"__key__": raw.key, "jpg": jpeg, "json": raw.json})
            tar.close()
        sha256 = hashlib.sha256((out / shard.file).read_bytes()).hexdigest()
        entries.append(
            replace(shard, bytes=os.path.getsize(out / shard.file), sha256=sha256, offsets=offsets)
        )
    image = ImageSpec(0, 0, packed.image.largest)
    shutil.copyfile(Path(packed.url) / LABELS, out / LABELS)
    content = replace(packed, shards_sha256=write_table(out, entries), image=image)
    (out / FILE).write_text(manifest_json(content))
    return load_manifest(str(out))


def jpegs(manifest: Manifest) -> list[bytes]:
    """The encoded pictures of the training shards."""
    files = [shard.file for shard in manifest.shards_of("train")]
    return [jpeg for name in files for jpeg, _ in bare_tar(Path(manifest.url) / name)]
