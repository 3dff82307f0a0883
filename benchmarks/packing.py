"""Packing as Ray tasks: images a second, and memory that does not grow with the data set.

Run `python -m benchmarks.packing` (nine minutes on two busy cores, 7 GB of temporary files); it
writes `benchmarks/results/packing.md`. The images are photographs as in benchmarks.photographs, in
two sizes: as they are, and small. Each distinct one stands under many names (hard links), so
the disk holds few of them; all are decoded, resized, encoded and written.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import platform
import tempfile
import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image

from benchmarks.photographs import write_photographs
from shards.config import PackConfig
from shards.manifest import Manifest
from shards.pack.executors import choose_run
from shards.pack.pack import Progress, pack

RESULTS = Path(__file__).parent / "results"
DISTINCT = 600


@dataclass(frozen=True)
class Row:
    """Memory in MB when `done` images were packed, `seconds` after the start."""

    seconds: float
    done: int
    driver: float
    largest_worker: float
    workers: int


@dataclass
class Watch:
    """Samples the memory of this process and of its Ray workers once a second."""

    rows: list[Row] = field(default_factory=list)
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    stopped: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Sample until `stopped` is set."""
        while not self.stopped.wait(1):
            seconds = time.monotonic() - self.started
            sizes = [resident(pid) for pid in ray_workers()]
            own = resident(os.getpid())
            self.rows.append(Row(seconds, self.done, own, max(sizes, default=0.0), len(sizes)))


def resident(pid: int) -> float:
    """Anonymous resident memory of a process in MB (none of the files that it maps)."""
    try:
        fields = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    sizes = {line.split(":")[0]: line.split()[1] for line in fields if line.endswith("kB")}
    return int(sizes.get("RssAnon", 0)) / 1024


def ray_workers() -> list[int]:
    """Processes of this process's Ray that run tasks, or have run them."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                names[int(entry.name)] = (entry / "cmdline").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = []
    for pid, name in names.items():
        ancestor = pid
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if name.startswith("ray::") and ancestor == os.getpid():
            found.append(pid)
    return found


def make_images(folder: Path, count: int, side: int | None, seed: int) -> float:
    """`count` names of DISTINCT photographs, their short side brought to `side`; the mean kB."""
    sizes = write_photographs(folder / "distinct", min(DISTINCT, count), seed)
    files = sorted((folder / "distinct").glob("*/*.jpg"))
    if side is not None:
        sizes = []
        for file in files:
            image = Image.open(file)
            scale = side / min(image.size)
            image.resize([round(x * scale) for x in image.size]).save(file, quality=90)
            sizes.append(file.stat().st_size)
    for number in range(count):
        source = files[number % len(files)]
        name = folder / "set" / source.parent.name / f"{number:07d}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, name)
    return float(np.mean(sizes)) / 1000


def measure(folder: Path, count: int, side: int | None, method: str) -> dict[str, Any]:
    """Pack `count` images and return what was seen."""
    kilobytes = make_images(folder, count, side, seed=count)
    config = PackConfig(
        source=f"folder:{folder / 'set'}",
        out=str(folder / "out"),
        unseen_fraction=0.25,
        patches=method,  # type: ignore[arg-type]
    )
    watch = Watch()
    thread = threading.Thread(target=watch.watch)
    thread.start()
    first: list[float] = []

    def on_progress(progress: Progress) -> None:
        watch.done = progress.done
        first.append(time.monotonic())

    cpu = os.times()
    try:
        manifest: Manifest = pack(config, run=choose_run(None, "auto"), on_progress=on_progress)
    finally:
        watch.stopped.set()
        thread.join()
    seconds = time.monotonic() - watch.started
    own = os.times()
    return {
        "images": count,
        "side": side,
        "patches": method,
        "kilobytes": kilobytes,
        "shards": len(manifest.shards),
        "stored_kilobytes": int(manifest.shards.records["bytes"].sum()) / count / 1000,
        "seconds": seconds,
        "images_per_second": count / seconds,
        "driver_cpu_seconds": own.user + own.system - cpu.user - cpu.system,
        "memory": [vars(row) for row in watch.rows],
    }


def flatness(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(share of the images done, driver MB, largest worker MB), the largest in each quarter."""
    rows = [row for row in found["memory"] if row["workers"]]
    parts = []
    for quarter in range(4):
        low, high = quarter / 4 * found["images"], (quarter + 1) / 4 * found["images"]
        inside = [r for r in rows if low <= r["done"] < high or (quarter == 3 and r["done"] >= low)]
        if inside:
            label = f"{25 * quarter} to {25 * (quarter + 1)}%"
            driver = max(r["driver"] for r in inside)
            parts.append((label, driver, max(r["largest_worker"] for r in inside)))
    return parts


def write(runs: list[dict[str, Any]], niced: int) -> str:
    """The results as Markdown."""
    load = os.getloadavg()[0]
    lines = [
        "# Packing as Ray tasks",
        "",
        "By `python -m benchmarks.packing`: photographs to tar shards of 1,000 images with 9 boxes "
        "each, short side at most 384 pixels, quality 90; one Ray task a shard, one core a task. "
        "Seconds include the start of the workers. Memory is anonymous resident memory (RssAnon), "
        "sampled once a second: the largest value in each quarter of the run, for the driver and "
        "for the largest of the workers.",
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores shared with other work, niced by "
        f"{niced}, load {load:.1f} at the end; python {platform.python_version()}, ray "
        f"{version('ray')}, pillow {version('pillow')}, simplejpeg {version('simplejpeg')}.",
        "",
        "| images | short side | kB an image, before and stored | boxes | shards | seconds | "
        "images/s |",
        "| ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for run in runs:
        side = run["side"] or "333 to 375"
        lines.append(
            f"| {run['images']:,} | {side} | {run['kilobytes']:.1f}, {run['stored_kilobytes']:.1f} "
            f"| {run['patches']} | {run['shards']} | {run['seconds']:.0f} | "
            f"{run['images_per_second']:.0f} |"
        )
    for run in runs:
        side = run["side"] or "333 to 375"
        lines += ["", f"## Memory, {run['images']:,} images of short side {side}", ""]
        lines += ["| images done | driver, MB | largest worker, MB |", "| --- | ---: | ---: |"]
        lines += [f"| {label} | {d:.0f} | {w:.0f} |" for label, d, w in flatness(run)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run both sizes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=100_000, help="number of small images")
    parser.add_argument("--large", type=int, default=100_000, help="number of photographs")
    parser.add_argument("--side", type=int, default=128, help="short side of the small ones")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    ray.init("local", num_cpus=options.cores, include_dashboard=False, logging_level="ERROR")
    runs = []
    for count, side in ((options.large, None), (options.small, options.side)):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(Path(folder), count, side, "grid"))
            print(json.dumps({k: v for k, v in runs[-1].items() if k != "memory"}))
    ray.shutdown()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "packing.json").write_text(json.dumps(runs) + "\n")
    (options.out / "packing.md").write_text(write(runs, os.nice(0)))
    print((options.out / "packing.md").read_text())


if __name__ == "__main__":
    main()
