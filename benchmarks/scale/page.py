"""The rows of the table and the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.scale.made import CLASSES, CLUSTERS, FEATURES, IMAGES, PATCHES, WORKERS
from benchmarks.scale.probes import LATENCY_S

BEFORE = "06e9f54"
SHARDS = (1_000, 10_000, 100_000)
Format = Callable[[float], str]


def as_seconds(value: float) -> str:
    """Seconds, in the unit that fits."""
    units = ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min"))
    for below, factor, unit in units:
        if value < below:
            return f"{value * factor:.3g} {unit}"
    return f"{value / 3600:.3g} h"


def as_bytes(value: float) -> str:
    """Bytes, in the unit that fits."""
    for power, unit in ((3, "kB"), (6, "MB"), (9, "GB")):
        if value < 10 ** (power + 3) or power == 9:
            return f"{value / 10**power:.3g} {unit}"
    raise AssertionError


def as_megabytes(value: float) -> str:
    """MB, in the unit that fits."""
    return as_bytes(value * 1e6)


def as_number(value: float) -> str:
    """A number as it is."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Row:
    """What a probe measures at several sizes, by the names of its values."""

    unit: str  # what the sizes count
    before: tuple[int, ...]
    after: tuple[int, ...]
    shown: dict[str, tuple[str, Format]]
    needs: str = ""  # what is made for it: a manifest, a tree or a run
    rounds: int = 1


_FILES, _PARTS = (1_000, 10_000, 100_000), (10_000, 100_000, 1_000_000)
ROWS = {
    "manifest": Row(
        "shards",
        SHARDS[:2],
        SHARDS,
        {"bytes": ("manifest.json and shards.npy", as_bytes)},
        "manifest",
    ),
    "start": Row(
        "shards",
        SHARDS[:2],
        SHARDS,
        {
            "features": ("CPU time until a feature process knows a unit's shard", as_seconds),
            "training": ("CPU time until a trainer knows its part of an epoch", as_seconds),
            "mb": ("memory that this takes", as_megabytes),
        },
        "manifest",
        rounds=3,
    ),
    "loader": Row(
        "shards",
        SHARDS[:2],
        SHARDS,
        {"bytes": ("bytes sent to a loader process", as_bytes)},
        "manifest",
    ),
    "order": Row(
        "shards",
        SHARDS,
        SHARDS,
        {
            "order": ("order of an epoch, in every trainer and loader process", as_seconds),
            "counts": ("batch counts of an epoch, in every trainer", as_seconds),
        },
        rounds=3,
    ),
    "check": Row(
        "shards",
        SHARDS[:2],
        SHARDS,
        {"seconds": ("start of a run: manifest and lengths of the tars", as_seconds)},
        "manifest",
    ),
    "files": Row(
        "images to pack",
        _FILES[:2],
        _FILES,
        {
            "seconds": ("start of packing: folders and files", as_seconds),
            "calls": ("of it, calls an image", as_number),
        },
        "tree",
    ),
    "submission": Row(
        "units",
        (1_000, 10_000),
        (1_000, 10_000, 100_000),
        {"seconds": ("driver's time for all calls", as_seconds)},
    ),
    "maps": Row(
        "units",
        (1_000, 10_000),
        (1_000, 10_000),
        {"maps": ("files that a lone trainer maps at once", as_number)},
    ),
    "sample": Row(
        "units",
        (1_000, 10_000),
        (1_000, 10_000),
        {"seconds": ("CPU time of one process for k-means' sample", as_seconds)},
        "cache",
    ),
    "embedding": Row(
        "images",
        _PARTS[:2],
        _PARTS,
        {"mb": ("driver's memory for the embedding", as_megabytes)},
    ),
    "evaluation": Row(
        "images",
        _PARTS[:2],
        _PARTS,
        {"mb": ("driver's memory for the features of the evaluation", as_megabytes)},
        "run",
    ),
    "queue": Row(
        "workers",
        (8, 1_000),
        (8, 1_000),
        {"mb": ("neighbour queue: into each GPU, a step", as_megabytes)},
    ),
    "flight": Row(
        "workers",
        (8, 1_000),
        (8, 1_000),
        {"calls": ("calls under way at once in tasks of features, a core a worker", as_number)},
    ),
}


def growth(values: dict[str, dict[str, float]], key: str) -> float | None:
    """By how much a value grows where its size grows tenfold: between the largest two sizes."""
    sizes = sorted(map(int, values))[-2:]
    low, high = (values[str(size)][key] for size in sizes)
    if low <= 0 or high <= 0:
        return None
    return 10 ** (math.log10(high / low) / math.log10(sizes[1] / sizes[0]))


def cells(found: dict[str, Any], key: str, shown: Format, sizes: list[int]) -> list[str]:
    """A row of the table: before and after at each size, then the growth of both."""
    line, factors = [], []
    for side in ("before", "after"):
        values, factor = found[side], growth(found[side], key)
        largest = max(map(int, values))
        for size in sizes:
            if str(size) in values:
                line.append(shown(max(0.0, values[str(size)][key])))
            else:
                times = min(factor or 1, 10) ** math.log10(size / largest)
                line.append(f"({shown(values[str(largest)][key] * times)})")
        factors.append("–" if factor is None else f"× {factor:.2g}")
    return [*line, *factors]


def page(results: dict[str, Any]) -> str:
    """The page of all results."""
    lines = [
        "# What grows with the data set and the cluster",
        "",
        f"By `python -m benchmarks.scale`: commit {BEFORE} (before) and this checkout (after), "
        f"each value from a process of its own. Shards of {IMAGES:,} images, {CLASSES:,} classes, "
        f"{PATCHES} patches an image, D_f = {FEATURES}, D_v = {CLUSTERS}, {WORKERS:,} workers; 100 "
        "million images are 100,000 shards and 400,000 units. Nothing is computed of pictures: "
        "manifests, units and parts are made, actors are faked. "
        f"Each look at a file or folder takes {LATENCY_S * 1e3:g} ms more, as over a "
        "network. Growth is the factor for ten times the size, between the largest two that were "
        "run: × 10 is as the work, × 1 not at all. In parentheses stands what was not run, by that "
        "growth, × 10 at most.",
        "",
        results["machine"],
    ]
    for unit in dict.fromkeys(row.unit for row in ROWS.values()):
        rows = {name: row for name, row in ROWS.items() if row.unit == unit}
        sizes = sorted({size for row in rows.values() for size in row.after})
        heads = [f"{side}, {size:,}" for side in ("before", "after") for size in sizes]
        lines += ["", f"## By {unit}", ""]
        lines.append(f"| {unit} | {' | '.join(heads)} | growth before | growth after |")
        lines.append("| --- |" + " ---: |" * (len(heads) + 2))
        for name, row in rows.items():
            if name in results["rows"]:
                for key, (label, shown) in row.shown.items():
                    found = cells(results["rows"][name], key, shown, sizes)
                    lines.append(f"| {label} | {' | '.join(found)} |")
    files, size = -(-IMAGES // 256), 2 * (PATCHES + 1) * FEATURES
    lines += [
        "",
        f"As before: {files} files of the feature cache a shard, {size / 1e3:.1f} kB an image.",
    ]
    return "\n".join(lines) + "\n"
