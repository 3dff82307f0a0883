"""k-means on a sample against all points: how far off, and how much sooner.

    python -m benchmarks.kmeans [--points 1000000]

Ours clusters 1,000 points a centroid, the default of a run; beside it stand the same program on
all points (full Lloyd), FAISS with its own start and sample, and scikit-learn's MiniBatchKMeans.
Methods take turns, one thread each; the objective is that of all points. It writes
`benchmarks/results/kmeans.md` (five minutes on a quiet core).
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import faiss
import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans

from vgse.clusters import fit_centroids, normalise_rows

RESULTS = Path(__file__).parent / "results"
DIMENSIONS, CLUSTERS, GROUPS = 128, 150, 600
SAMPLE = 1000 * CLUSTERS
Points = NDArray[np.float32]
ALL, OURS = "ours, all points (full Lloyd)", "ours, 1,000 points a centroid (default)"


def draw_points(count: int, seed: int = 0) -> Points:
    """Unit rows around 600 directions of unequal weight, float32 [count, 128].

    There are more directions than clusters, and they overlap, as patches do.
    """
    random = np.random.default_rng(seed)
    centres = random.normal(size=(GROUPS, DIMENSIONS)).astype(np.float32)
    weights = random.dirichlet(np.full(GROUPS, 0.5))
    points = centres[random.choice(GROUPS, count, p=weights)]
    points += random.normal(size=points.shape).astype(np.float32)
    return normalise_rows(points)


def by_ours(points: Points, seed: int) -> Points:
    """A sample drawn as a run draws it, by the smallest of random numbers, and its clusters."""
    hashes = np.random.default_rng(seed).integers(2**64, size=len(points), dtype=np.uint64)
    chosen = np.sort(np.argpartition(hashes, SAMPLE - 1)[:SAMPLE])
    return fit_centroids(points[chosen], CLUSTERS, seed=seed).vectors


def by_all(points: Points, seed: int) -> Points:
    """The same start and iterations on every point."""
    return fit_centroids(points, CLUSTERS, seed=seed, max_points_per_centroid=len(points)).vectors


def by_faiss(points: Points, seed: int) -> Points:
    """FAISS as it comes: a random start, 256 points a centroid."""
    kmeans = faiss.Kmeans(DIMENSIONS, CLUSTERS, niter=20, seed=seed + 1, spherical=True)
    kmeans.train(points)
    assert kmeans.centroids is not None
    return kmeans.centroids


def by_scikit_learn(points: Points, seed: int) -> Points:
    """Mini-batches of scikit-learn's default size."""
    found = MiniBatchKMeans(CLUSTERS, random_state=seed, n_init=1).fit(points)
    return normalise_rows(found.cluster_centers_.astype(np.float32))


METHODS: dict[str, Callable[[Points, int], Points]] = {
    OURS: by_ours,
    ALL: by_all,
    "FAISS as it comes, 256 points a centroid": by_faiss,
    "scikit-learn MiniBatchKMeans": by_scikit_learn,
}


def objective(points: Points, centroids: Points) -> float:
    """Mean squared distance of all points to their nearest centroid."""
    blocks = range(0, len(points), 65536)
    best = [(points[at : at + 65536] @ centroids.T).max(1) for at in blocks]
    return float((2 - 2 * np.concatenate(best)).mean(dtype=np.float64))


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    points = draw_points(options.points)
    by_ours(points[: SAMPLE + 1], 0)  # the first call loads what all others find
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in range(options.rounds):
        for name, method in METHODS.items():
            began = time.perf_counter()
            centroids = method(points, seed)
            seconds[name].append(time.perf_counter() - began)
            found[name].append(objective(points, centroids))
            print(f"round {seed + 1}: {name}: {seconds[name][-1]:.1f} s, {found[name][-1]:.5f}")
    lines = [
        "# k-means on a sample against all points",
        "",
        f"By `python -m benchmarks.kmeans`: {options.points:,} unit vectors of {DIMENSIONS} "
        f"dimensions around {GROUPS} directions, {CLUSTERS} clusters, 20 Lloyd iterations, one "
        f"thread; {options.rounds} rounds of other seeds in turns. Objective: mean squared "
        "distance of all points to their nearest centroid. Both columns are against full Lloyd "
        "in the same round, median (range). Targets: within 0.5 %, at 5x the speed.",
        "",
        "| method | objective, % above full Lloyd | times as fast |",
        "| --- | ---: | ---: |",
    ]
    for name in METHODS:
        above = [100 * (a / b - 1) for a, b in zip(found[name], found[ALL], strict=True)]
        faster = [b / a for a, b in zip(seconds[name], seconds[ALL], strict=True)]
        lines.append(f"| {name} | {spread(above, 2)} | {spread(faster, 1)} |")
    own = 100 * (max(found[ALL]) / min(found[ALL]) - 1)
    lines += [
        "",
        f"Full Lloyd itself ends up to {own:.2f} % apart, by its seed: differences of that size "
        "are those between local optima.",
    ]
    packages = ("faiss-gpu", "scikit-learn", "numpy")
    lines += [
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores shared with other work (load "
        f"{os.getloadavg()[0]:.1f} at the end); python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + ".",
    ]
    (RESULTS / "kmeans.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
