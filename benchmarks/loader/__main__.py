"""CPU time from stored JPEGs to patches: our loader beside others, in turns, on one thread.

    python -m benchmarks.loader [--peers-python PATH] [--rounds 7] [--images 512]

Writes `benchmarks/results/loader.md`. Without --peers-python an environment for litdata and
MosaicML streaming, which asks for an older NumPy, is made in runs/peers on the first run.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy

import argparse
import cProfile
import itertools
import platform
import pstats
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.loader.data import make_data
from benchmarks.loader.methods import (
    ROOT,
    Answer,
    Method,
    Peer,
    all_methods,
    our_batches,
    peers_python,
    start_peers,
)
from benchmarks.loader.samples import one_thread
from benchmarks.loader.tables import Result, render
from shards.loader import Cut
from shards.manifest import Manifest

RESULT = Path(__file__).resolve().parents[1] / "results" / "loader.md"
SIDES = (224, 96)
STAGES = {"check_samples": "read", "decode_sample": "JSON and decode"}
CUTS = {"cut_patches_opencv": "cut", "resize_square": "resize"}


def measure(methods: list[Method], rounds: int) -> dict[Method, list[Answer]]:
    """Every method in turn, `rounds` times, after a turn that is not counted."""
    found: dict[Method, list[Answer]] = {method: [] for method in methods}
    rng = np.random.default_rng(0)
    for number in range(rounds + 1):
        for index in rng.permutation(len(methods)):
            answer = methods[index].run(methods[index].count)
            if number and answer[1]:
                found[methods[index]].append(answer)
        print(f"round {number} of {rounds}, {time.process_time():.0f} CPU s", flush=True)
    return found


def stage_shares(manifest: Manifest, cut: Cut) -> dict[str, float]:
    """Shares of our loader's CPU time, in 0..1, by cProfile over an epoch."""
    names = {**STAGES, **CUTS}
    profile = cProfile.Profile(time.process_time)
    profile.enable()
    for _ in our_batches(manifest, cut, 0):
        pass
    profile.disable()
    stats = pstats.Stats(profile)
    shares: dict[str, float] = {}
    for (file, _, function), row in stats.stats.items():  # type: ignore[attr-defined]
        if function in names and str(ROOT) in file:
            shares[names[function]] = row[3] / stats.total_tt  # type: ignore[attr-defined]
    return {**shares, "rest": 1 - sum(shares.values())}


def memory_by_epoch(manifest: Manifest, cut: Cut, epochs: int = 5) -> list[float]:
    """Resident MB of this process after each of some epochs of our loader."""
    found = []
    page = os.sysconf("SC_PAGE_SIZE")
    for epoch in range(epochs):
        for _ in our_batches(manifest, cut, epoch):
            pass
        found.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6)
    return found


def machine(peers: list[Peer]) -> str:
    """What the figures were taken on."""
    model = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    packages = ["numpy", "torch", "torchvision", "pillow", "simplejpeg", "webdataset"]
    names = {"streaming": "mosaicml-streaming"}
    versions = [f"{name} {version(name)}" for name in packages]
    versions += [f"opencv {version('opencv-python-headless')}"]
    versions += [f"{names.get(peer.name, peer.name)} {peer.version}" for peer in peers]
    load = round(os.getloadavg()[0], 1)
    return (
        f"{model}, {os.cpu_count()} cores, load {load} at the end; Python "
        f"{platform.python_version()}, {', '.join(versions)}"
    )


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--peers-python", help="Python that has litdata and mosaicml-streaming")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=512)
    options = parser.parse_args()
    one_thread()
    python = options.peers_python or peers_python(ROOT / "runs" / "peers")
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), options.images)
        peers = start_peers(python, Path(folder))
        methods = all_methods(data, peers, SIDES)
        answers = measure(methods, options.rounds)
        cuts = [Cut("patches", side) for side in SIDES]
        cuts.append(Cut("images", data.packed.image.largest))
        stores = {"packed": data.packed, "originals": data.originals}
        result = Result(
            answers=answers,
            shares={
                (stored, cut): stage_shares(manifest, cut)
                for (stored, manifest), cut in itertools.product(stores.items(), cuts)
            },
            memory=memory_by_epoch(data.packed, cuts[-1]),
            kilobytes={
                stored: sum(s.bytes for s in m.shards_of("train")) / m.num_images("train") / 1e3
                for stored, m in stores.items()
            },
            images=data.packed.num_images("train"),
            errors={peer.name: peer.error for peer in peers if peer.error},
            machine=machine(peers),
            sides=SIDES,
        )
        for peer in peers:
            peer.close()
    text = render(result)
    RESULT.parent.mkdir(exist_ok=True)
    partial = RESULT.with_name(f".{RESULT.name}.partial")
    partial.write_text(text)
    os.replace(partial, RESULT)
    print(text)


if __name__ == "__main__":
    main()
