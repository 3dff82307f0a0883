"""Time of the choice of the sources' weights and the ridge, and what it goes into.

Run `python -m benchmarks.relations.choice`; it writes `benchmarks/results/relation-choice.md`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgse.files import written_whole
from vgse.knowledge.sources import Knowledge, Source, source_blocks
from vgse.relations import select

F64 = NDArray[np.float64]

RESULTS = Path(__file__).parents[1] / "results"
CLASSES = (156, 1000)


def made_sources(num_classes: int) -> tuple[F64, list[F64]]:
    """Embeddings [C, 150] that follow from two sources and noise; the blocks of both sources.

    The sources are 50-d vectors with a decaying spectrum, and a hierarchy of 8 levels in which
    most classes hang on a node of a class before them.
    """
    rng = np.random.default_rng(num_classes)
    words = rng.normal(size=(num_classes, 50)) / np.sqrt(1.0 + np.arange(50))
    paths: list[list[int]] = []
    num_nodes = 0
    for i in range(num_classes):
        shared = int(rng.integers(1, 8)) if i else 0
        path = paths[rng.integers(i)][:shared] if i else []
        paths.append([*path, *range(num_nodes, num_nodes + 8 - shared)])
        num_nodes += 8 - shared
    ancestors = np.zeros((num_classes, num_nodes))
    for i, path in enumerate(paths):
        ancestors[i, path] = 0.9 ** np.arange(7, -1, -1)
    sources = [Source("words", words, None), Source("hierarchy", ancestors, None, True)]
    names = [str(i) for i in range(num_classes)]
    blocks = source_blocks(Knowledge(names, sources), np.arange(num_classes))
    points, spread, _ = np.linalg.svd(np.concatenate(blocks, axis=1), full_matrices=False)
    embeddings = (points * spread)[:, :60] @ rng.normal(size=(60, 150))
    return embeddings / embeddings.std() + rng.normal(size=embeddings.shape), blocks


def measure(num_classes: int) -> dict[str, Any]:
    """The choice by one thread and by all cores; CPU time and that of the Gram matrices."""
    embeddings, blocks = made_sources(num_classes)
    result: dict[str, Any] = {}
    problem, assembly = select._problem, []

    def timed_problem(*args: Any) -> select._Problem:
        start = time.thread_time()
        made = problem(*args)
        assembly.append(time.thread_time() - start)
        return made

    select._problem = timed_problem
    for threads, name in (("1", "one_thread"), ("", "seconds")):
        os.environ["OMP_NUM_THREADS"] = threads  # of Python; BLAS has read its own at import
        assembly.clear()
        wall, cpu = time.perf_counter(), time.process_time()
        found = select.select_relation(embeddings, blocks)
        result[name] = time.perf_counter() - wall
        result["cpu"] = time.process_time() - cpu
    select._problem = problem
    return result | {
        "assembly": sum(assembly),
        "settings": len(found.curve),
        "weightings": len({setting.weights for setting in found.curve}),
        "problems": found.num_problems,
    }


def main() -> None:
    """Measure, print and write the table."""
    lines = [
        "# The choice of the sources' weights and the ridge",
        "",
        "By `python -m benchmarks.relations.choice`, on made vectors and a made hierarchy; five "
        "folds, twice. Nothing is compiled. BLAS works on one thread; from 400 classes on the "
        "folds stand side by side on the cores. Gram matrices: those of each weighting and fold, "
        "mixed from one matrix a source.",
        "",
        "| seen classes | settings (weightings) | exact problems | s | s, one thread | CPU s "
        "| of these Gram matrices |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for count in CLASSES:
        row = measure(count)
        lines.append(
            f"| {count:,} | {row['settings']} ({row['weightings']}) | {row['problems']:,} "
            f"| {row['seconds']:.1f} | {row['one_thread']:.1f} | {row['cpu']:.1f} "
            f"| {row['assembly']:.2f} |"
        )
    load = os.getloadavg()[0]
    lines += ["", f"Machine: {os.cpu_count()} cores shared with other work, load {load:.1f}."]
    text = "\n".join(lines) + "\n"
    with written_whole(RESULTS / "relation-choice.md") as stream:
        stream.write(text.encode())
    print(text)


if __name__ == "__main__":
    main()
