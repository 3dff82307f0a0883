"""The loader of an earlier commit and this one, in turns: CPU an image, and time between epochs.

    python -m benchmarks.loader.before_after [--before 7e33ff0] [--rounds 9] [--images 256]

Writes `benchmarks/results/loader-rebuilt.md`. The earlier code is read from a git worktree that
is made for it and removed; both read the same shards, each in a process of its own.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "loader-rebuilt.md"
WORKERS, BATCH_SIZE = 2, 32
CUTS = {
    "patches of 224": ("patches", 224),
    "patches of 96": ("patches", 96),
    "one picture of 224": ("images", 224),
    "one picture of 96": ("images", 96),
}


def answer_commands(folder: str) -> None:
    """The process of one version: CPU ms an image, or seconds before and in each epoch."""
    import cv2
    import torch

    from shards.loader import Batches, Cut, make_loader
    from shards.manifest import load_manifest
    from shards.sampler import order_of, select, split_ranges, start_of

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    manifest = load_manifest(folder)
    selection = select(manifest, "train")
    numbers = itertools.count()

    def next_epoch(workers: int) -> tuple[Any, Any]:
        cursor = start_of(manifest, selection, seed=0, epoch=next(numbers))
        plan = split_ranges(cursor.remaining, 1, workers, BATCH_SIZE)
        return order_of(cursor, selection), plan

    def cpu(mode: str, side: int) -> list[float]:
        order, plan = next_epoch(0)
        batches = Batches(manifest, selection, order, plan, 0, Cut(mode, side))  # type: ignore[arg-type]
        start = time.process_time()
        images = sum(len(batch) for batch in batches)
        return [1e3 * (time.process_time() - start) / images]

    def waits(count: int) -> list[float]:
        found: list[float] = []
        loader = batches = None
        ended = 0.0
        for _ in range(count):
            order, plan = next_epoch(WORKERS)
            if batches is None or not hasattr(batches, "begin"):
                batches = Batches(manifest, selection, order, plan, 0, Cut("images", 96))
                loader = make_loader(batches)
            else:
                batches.begin(order, plan)
            assert loader is not None
            clock = [ended, *(time.perf_counter() for _ in loader)]
            ended = clock[-1]
            found += [clock[1] - clock[0], clock[-1] - clock[1]]
        return found[2:]  # nothing comes before the first

    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(cpu(*command) if len(command) == 2 else waits(*command)), flush=True)


class Version:
    """A process with the code of one folder."""

    def __init__(self, tree: Path, shards: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--answer", shards],
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tree)},
        )

    def ask(self, *command: Any) -> list[float]:
        """The answer to one command."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        found: list[float] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """The code of a commit."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def main() -> None:
    """Measure in turns and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--before", default="7e33ff0", help="Commit to compare with.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()

    import numpy as np

    from benchmarks.loader.__main__ import machine
    from benchmarks.loader.data import make_data
    from benchmarks.loader.tables import spread

    scratch = tempfile.TemporaryDirectory()
    with scratch as name, worktree(options.before, Path(name) / "before") as tree:
        shards = make_data(Path(name), options.images).packed.url
        old, new = Version(tree, shards), Version(ROOT, shards)
        ratios: dict[str, list[float]] = {label: [] for label in CUTS}
        for number in range(options.rounds + 1):
            for label, cut in CUTS.items():
                pair = [old, new] if number % 2 else [new, old]
                answers = {version: version.ask(*cut)[0] for version in pair}
                if number:  # the first round fills caches
                    ratios[label].append(answers[new] / answers[old])
        waits = {
            version: np.array(version.ask(options.rounds + 3)).reshape(-1, 2)
            for version in (old, new)
        }
        old.close()
        new.close()
    rows = [f"| {label} | {spread(np.array(values), 2)} |" for label, values in ratios.items()]
    epoch = np.median(waits[old][:, 1])
    gaps = {version: np.median(waits[version][:, 0]) / epoch for version in (old, new)}
    text = "\n".join(
        [
            "# The loader on WebDataset, beside the one before",
            "",
            f"By `python -m benchmarks.loader.before_after`: commit {options.before} and this "
            f"one read the same shards in turns, {options.rounds} rounds. CPU time an image of "
            "this code to that of the earlier one, in one process; medians, quartiles in brackets.",
            "",
            "| | to before |",
            "| --- | ---: |",
            *rows,
            "",
            f"Between the last batch of an epoch and the first of the next, with {WORKERS} loader "
            f"processes, passes {gaps[old]:.2f} of the time in which the earlier code then gives "
            f"the rest of the {options.images} images, and {gaps[new]:.2f} of it with this one, "
            f"whose processes live on (medians of {options.rounds + 2} epochs).",
            "",
            f"Machine: {machine([])}.",
            "",
        ]
    )
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer_commands(sys.argv[2])
    else:
        main()
