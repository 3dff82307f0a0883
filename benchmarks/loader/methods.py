"""The methods that are compared: ours and the others of this process, and peers behind pipes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import webdataset
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

from benchmarks.loader.data import UNSEEN, Data, jpegs
from benchmarks.loader.samples import (
    BATCH_SIZE,
    Part,
    Raw,
    bare_tar,
    batched,
    boxes_of,
    consume,
    endless,
    pil_patches,
)
from shards.loader import Batch, Batches, Cut
from shards.manifest import Manifest
from shards.sampler import order_of, select, split_ranges, start_of
from shards.samples import read_raw
from vgse.images.patches import grid_boxes

ROOT = Path(__file__).resolve().parents[2]
NEEDS = ["litdata", "mosaicml-streaming", "simplejpeg", "opencv-python-headless"]
NO_BOXES = np.empty((0, 4), np.float32)

Answer = tuple[float, int, int]  # CPU seconds, images, bytes handed over


@dataclass(frozen=True)
class Method:
    """Who reads which pictures ("originals" or "packed") and does what, `count` images a turn.

    way: "read" or "decode" alone, "pil" or "opencv" for patches of `side` cut by one of these,
    "image" for one picture to be cut later.
    """

    who: str
    stored: str
    way: str
    side: int
    count: int
    run: Callable[[int], Answer]

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells it from the others."""
        return self.who, self.stored, self.way, self.side


def timed(parts: Iterator[Part]) -> Callable[[int], Answer]:
    """Take images from an endless iterator, in CPU time of this process."""

    def run(count: int) -> Answer:
        start = time.process_time()
        images, size = consume(parts, count)
        return time.process_time() - start, images, size

    return run


def our_batches(manifest: Manifest, cut: Cut, epoch: int) -> Batches:
    """Our loader over one epoch of the training split, as the trainer makes it."""
    selection = select(manifest, "train")
    cursor = start_of(manifest, selection, seed=0, epoch=epoch)
    plan = split_ranges(cursor.remaining, 1, 0, BATCH_SIZE)
    return Batches(manifest, selection, order_of(cursor, selection), plan, 0, cut)


def handed(batch: Batch) -> Part:
    """Images of a batch and bytes of its tensors."""
    found = (batch.images, batch.patches, batch.boxes, batch.labels)
    return len(batch), sum(tensor.nbytes for tensor in found if tensor is not None)


def ours(manifest: Manifest, cut: Cut) -> Iterator[Part]:
    """Epoch after epoch of our loader."""
    for epoch in itertools.count():
        yield from map(handed, our_batches(manifest, cut, epoch))


def our_reading(manifest: Manifest) -> Iterator[Part]:
    """Our reader alone, neither JSON nor JPEG decoded."""
    while True:
        for shard in manifest.shards_of("train"):
            yield from ((1, len(raw.jpeg)) for raw in read_raw(manifest, shard))


def image_folder(data: Data, side: int) -> Iterator[Part]:
    """The baseline: ImageFolder and DataLoader, patches cut by PIL, floats."""
    transform = partial(pil_patches, boxes=grid_boxes(data.packed.num_patches), side=side)
    folder = ImageFolder(str(data.photographs), transform=transform)
    left_out = folder.class_to_idx[UNSEEN]
    chosen = [i for i, label in enumerate(folder.targets) if label != left_out]
    loader = DataLoader(Subset(folder, chosen), BATCH_SIZE, shuffle=True, num_workers=0)
    return ((len(labels), patches.nbytes) for patches, labels in endless(lambda: loader))


def shard_paths(manifest: Manifest) -> list[str]:
    """Paths of the training shards."""
    return [f"{manifest.url}/{shard.file}" for shard in manifest.shards_of("train")]


def bare_samples(manifest: Manifest, *, parse: bool) -> Iterator[Raw]:
    """Samples by the bare tar reader."""
    for path in endless(lambda: shard_paths(manifest)):
        for jpeg, text in bare_tar(path):
            yield jpeg, boxes_of(text) if parse else NO_BOXES


def webdataset_samples(manifest: Manifest, *, parse: bool) -> Iterator[Raw]:
    """Samples by webdataset."""
    data = webdataset.WebDataset(shard_paths(manifest), shardshuffle=False).to_tuple("jpg", "json")
    for jpeg, text in endless(lambda: data):
        yield jpeg, boxes_of(text) if parse else NO_BOXES


def decoding(manifest: Manifest) -> Iterator[Part]:
    """Decoding alone, from memory into one buffer: no loader can be faster on these JPEGs."""
    scratch = np.empty(1 << 23, np.uint8)
    for jpeg in itertools.cycle(jpegs(manifest)):
        yield 1, simplejpeg.decode_jpeg(jpeg, buffer=scratch).nbytes


def in_memory(manifest: Manifest) -> Iterator[Raw]:
    """Samples without any reading."""
    samples = [s for path in shard_paths(manifest) for s in bare_tar(path)]
    return itertools.cycle([(jpeg, boxes_of(text)) for jpeg, text in samples])


class Peer:
    """A process of `loader_peers`; error says why there is none."""

    def __init__(self, name: str, python: str, scratch: Path) -> None:
        self.name, self.error, self.version = name, "", ""
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.loader.peers", name, str(scratch / name)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(scratch / f"{name}.log", "w"),  # noqa: SIM115
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"},
        )

    def wait(self) -> None:
        """Wait until it has started."""
        self.version = self._answer().get("version", "")

    def run(self, folder: str, way: str, side: int, count: int) -> Answer:
        """One command; no images if it fails."""
        if not self.error:
            command = {"folder": folder, "way": way, "side": side, "count": count}
            assert self.process.stdin
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            fields = self._answer()
            if fields:
                return fields["seconds"], fields["images"], fields["bytes"]
        return 0.0, 0, 0

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        fields: dict[str, Any] = json.loads(line) if line else {"error": "its process died"}
        self.error = fields.get("error", "")
        return {} if self.error else fields


def peers_python(folder: Path) -> str:
    """The Python of an environment with the peers that clash with ours, made if need be."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {', '.join(NEEDS)} into {folder}: several GB, once", flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *NEEDS], check=False)
    return str(python)


def start_peers(python: str, scratch: Path) -> list[Peer]:
    """Ray Data from this environment, the others from `python`'s."""
    peers = [
        Peer("litdata", python, scratch),
        Peer("streaming", python, scratch),
        Peer("ray", sys.executable, scratch),
    ]
    for peer in peers:
        peer.wait()
    return peers


def all_methods(data: Data, peers: list[Peer], sides: tuple[int, ...]) -> list[Method]:
    """Every method of the tables."""
    stores = {"originals": data.originals, "packed": data.packed}
    largest = data.packed.image.largest
    found = []
    for stored, manifest in stores.items():
        way = "pil" if stored == "originals" else "opencv"
        reading = {
            "bare": partial(bare_samples, manifest),
            "webdataset": partial(webdataset_samples, manifest),
        }
        found += [
            Method("decode", stored, "decode", 0, 128, timed(decoding(manifest))),
            Method("ours", stored, "read", 0, 512, timed(our_reading(manifest))),
            Method(
                "ours", stored, "image", largest, 256, timed(ours(manifest, Cut("images", largest)))
            ),
        ]
        for who, samples in reading.items():
            raw = batched(samples(parse=False), "read", 0)
            found.append(Method(who, stored, "read", 0, 512, timed(raw)))
        for peer in peers:
            run = partial(peer.run, manifest.url, "read", 0)
            found.append(Method(peer.name, stored, "read", 0, 512, run))
        for side in sides:
            cut = Cut("patches", side)
            found.append(Method("ours", stored, "opencv", side, 256, timed(ours(manifest, cut))))
            parts = batched(in_memory(manifest), "opencv", side)
            found.append(Method("memory", stored, "opencv", side, 128, timed(parts)))
            if way == "pil":
                base = timed(image_folder(data, side))
                found.append(Method("folder", stored, way, side, 64, base))
            for who, samples in reading.items():
                if way == "opencv" or who == "webdataset":
                    parts = batched(samples(parse=True), way, side)
                    count = 32 if way == "pil" else 256
                    found.append(Method(who, stored, way, side, count, timed(parts)))
            for peer in peers:
                run = partial(peer.run, manifest.url, way, side)
                count = {"pil": 32, "opencv": 256}[way]
                found.append(Method(peer.name, stored, way, side, count, run))
    return found
