"""Our training step beside the arithmetic of its backbone, on a GPU.

    python -m benchmarks.gpu            on a GPU; writes benchmarks/results/gpu-<name>.md
    python -m benchmarks.gpu --quick    small sizes, also on a CPU; writes gpu.md there

Needs torch, torchvision and this checkout. Where the libraries of `shards` are installed it reads
shards with our loader, else with a plain tar reader; FAISS is measured where it is installed. All
paths take turns in every round.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision

from benchmarks.gpu.data import Source, make_pictures, pack_pictures, shards_are_usable
from benchmarks.gpu.memory import kept_bytes, largest_batch, optimiser_bytes
from benchmarks.gpu.page import Results, render
from benchmarks.gpu.paths import (
    Ours,
    Setting,
    Turn,
    clusterings,
    cutting_paths,
    flops_of_step,
    mixture,
    peak_tflops,
    plain_paths,
    wait,
)
from benchmarks.gpu.paths import Path as Timed

FOLDER = Path(__file__).resolve().parents[1] / "results"


def arguments() -> argparse.Namespace:
    """The command line; sizes that are not given follow from --quick."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--backbone", help="torchvision model (resnet50; quick: resnet18)")
    parser.add_argument("--side", type=int, help="pixels of a patch's side (224; quick: 64)")
    parser.add_argument("--batch", type=int, help="images in a step (64; quick: 8)")
    parser.add_argument("--rounds", type=int, help="turns of every path (7; quick: 5)")
    parser.add_argument("--steps", type=int, help="steps in a turn (20; quick: 2)")
    parser.add_argument("--pictures", type=int, help="pictures in the shards (2048; quick: 64)")
    parser.add_argument("--points", type=int, help="k-means points (150,000; quick: 15,000)")
    parser.add_argument("--loader-workers", type=int, help="processes (the cores less one)")
    parser.add_argument("--compile", action="store_true", help="compile blocks on a CPU, too")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the page")
    found = parser.parse_args()
    normal = {"backbone": "resnet50", "side": 224, "batch": 64, "rounds": 7, "steps": 20}
    quick = {"backbone": "resnet18", "side": 64, "batch": 8, "rounds": 5, "steps": 2}
    normal |= {"pictures": 2048, "points": 150_000}
    quick |= {"pictures": 64, "points": 15_000}
    for name, value in (quick if found.quick else normal).items():
        if getattr(found, name) is None:
            setattr(found, name, value)
    if found.loader_workers is None:
        found.loader_workers = min(16, _cores() - 1)
    if not found.quick and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; use --quick for small sizes on the CPU")
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return " ".join(names[0].split()) if names else platform.machine()


def _command() -> str:
    """What was typed, without the folder of the page."""
    words = sys.argv[1:]
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return " ".join(["python -m benchmarks.gpu", *words])


def take_turns(paths: dict[str, Timed], rounds: int, note: str) -> list[dict[str, Turn]]:
    """Every path in turn, in a new order each round, after a round that is not counted."""
    found = []
    random = np.random.default_rng(0)
    for number in range(rounds + 1):
        names = [list(paths)[index] for index in random.permutation(len(paths))]
        turns = {name: paths[name]() for name in names}
        if number:
            found.append(turns)
        print(f"{note}: round {number} of {rounds}", flush=True)
    return found


def peak_memory(path: Timed, device: torch.device) -> float:
    """GB that a path's turn holds at the most."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    path()
    return float(torch.cuda.max_memory_allocated(device)) / 1e9


def largest_batches(setting: Setting, most: int = 4096) -> dict[str, tuple[int, float]]:
    """For whole steps and steps in micro-batches: the most images that fit, and GB in use."""
    found = {}
    for name, micro_batches in (("synthetic", 1), ("accumulated", 4)):
        ours = Ours(setting)

        def attempt(size: int, ours: Ours = ours, parts: int = micro_batches) -> None:
            ours.step(ours.data(size), parts)
            wait(setting.device)

        images = largest_batch(attempt, 8, most)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setting.device)
        if images:
            attempt(images)
        found[name] = images, torch.cuda.max_memory_allocated(setting.device) / 1e9
        print(f"largest batch: {name}, {images} images", flush=True)
    return found


def compiled_path(setting: Setting, steps: int) -> Timed | None:
    """(b) with compiled blocks; None where they cannot be compiled, as without a C compiler."""
    ours = Ours(setting, compile_blocks=True)
    try:
        ours.step(ours.data(setting.batch_size))
    except Exception as error:  # PyTorch has no kind of its own for this
        print(f"compiled: left out, {type(error).__name__}: {str(error)[:200]}", flush=True)
        return None
    return ours.synthetic(steps)


def measure(options: argparse.Namespace, work: Path, save: Callable[[Results], None]) -> None:
    """All parts of the benchmark; `save` is called after each, so that what ends a later one
    takes nothing away."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    setting = Setting(
        backbone=options.backbone,
        side=options.side,
        num_patches=9,
        batch_size=options.batch,
        device=device,
        precision="bfloat16" if on_gpu else "float32",
    )
    name = torch.cuda.get_device_name(device) if on_gpu else f"the CPU alone ({_processor()})"
    machine = (
        f"{_cores()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, {torch.get_num_threads()} threads"
    )
    results = Results(setting, name, machine, _command(), options.quick)
    results.flops = flops_of_step(setting)
    results.peak_tflops = peak_tflops(name) if on_gpu else None
    patch, rest = kept_bytes("resnet50", 224)
    results.counted = "ResNet-50", 224, patch, rest + optimiser_bytes("resnet50")
    results.loader_workers, results.cores = options.loader_workers, _cores()

    source = Source(
        folder=work / "shards",
        ours=shards_are_usable(),
        batch_size=options.batch,
        num_patches=setting.num_patches,
        patch_size=options.side,
        loader_workers=options.loader_workers,
        on_device=on_gpu,
    )
    results.reader = "our loader" if source.ours else "a plain tar reader with PIL (no `shards`)"
    results.picture_kb = make_pictures(work / "pictures", options.pictures, _cores()) / 1000
    pack_pictures(work / "pictures", source)

    ours = Ours(setting)
    paths = plain_paths(setting, options.steps)
    paths["embedding"] = ours.embedding(options.steps)
    paths["synthetic"] = ours.synthetic(options.steps)
    paths["unfolded"] = Ours(setting, folded=False).synthetic(options.steps)
    paths["accumulated"] = ours.synthetic(options.steps, micro_batches=4)
    compiled = compiled_path(setting, options.steps) if on_gpu or options.compile else None
    if compiled:
        paths["compiled"] = compiled
    paths["loaded"] = ours.loaded(source, options.steps)
    results.rounds = take_turns(paths, options.rounds, "steps")
    save(results)
    if on_gpu:
        results.memory = {path: peak_memory(turn, device) for path, turn in paths.items()}
        save(results)
    del paths, ours, compiled

    if on_gpu:
        results.largest = largest_batches(setting)
        save(results)
    ways, gaps = cutting_paths(setting, options.steps)
    results.cutting = take_turns(ways, options.rounds, "cutting")
    results.cutting_gaps = gaps
    save(results)
    del ways
    size, num_clusters = 256, max(2, options.points // 1000)
    results.clustering_sizes = (options.points, size, num_clusters)
    features = mixture(options.points, size, 4 * num_clusters)
    for ran_on, found in clusterings(features, num_clusters, 3).items():
        seconds = statistics.median(taken for taken, _ in found)
        objective = statistics.median(result.objective for _, result in found)
        results.clusterings.append((ran_on, seconds, objective))
    save(results)


def write_page(results: Results, folder: Path) -> Path:
    """Write the page of what there is so far; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = results.setting.device.type == "cuda"
    label = f"-{'-'.join(results.device_name.split())}" if on_gpu else ""
    path = folder / f"gpu{label}.md"
    part = path.with_suffix(".part")
    part.write_text(render(results))
    os.replace(part, path)
    return path


def main() -> None:
    """Measure and write the page."""
    options = arguments()
    written: list[Path] = []
    with tempfile.TemporaryDirectory() as work:
        measure(
            options, Path(work), lambda results: written.append(write_page(results, options.out))
        )
    print(written[-1].read_text())
    print(f"written to {written[-1]}")


if __name__ == "__main__":
    main()
