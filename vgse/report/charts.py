"""How training went: a small chart for each measure by epoch, and bars of cluster use."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vgse.config import loss_symbols
from vgse.report.page import MINUS, number, percent
from vgse.report.run_files import RunFiles

WIDTH, HEIGHT = 300, 132
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 20

LOSSES = {
    "loss": "all terms, weighted",
    "classification": "names the class from the clusters",
    "semantic": "finds the word vector from the clusters",
    "consistency": "neighbouring patches share clusters",
    "entropy": "lower when all clusters are in use",
}
MEASURES: tuple[tuple[str, str, str, int, tuple[float, float] | None], ...] = (
    ("nmi", "NMI", "what clusters tell of classes", 3, None),
    ("used_clusters", "Clusters in use", "with a patch", 0, None),
    ("usage_entropy", "Evenness of use", "1 when all are used alike", 2, (0.0, 1.05)),
    ("images_per_second", "Images a second", "all workers together", 0, None),
)
"""Field, title, note, digits, and limits of the axis."""


def curves_section(run: RunFiles) -> dict[str, Any]:
    """Small multiples of the losses, NMI, cluster use and speed, and the bars of cluster use."""
    clusters = run.evaluation.get("clusters", {})
    kmeans, total = clusters.get("nmi_kmeans"), clusters.get("num_clusters")
    levels = {}
    if kmeans is not None:
        levels["nmi"] = (float(kmeans), f"k-means {number(kmeans)}")
    if total is not None:
        levels["used_clusters"] = (float(total), f"all {total}")
    losses = [
        (field, field.replace("_", " ").capitalize(), LOSSES.get(field, ""), 3, None)
        for field in ("loss", *loss_symbols())
    ]
    return {
        "charts": [
            line_chart(points, title, note, digits, limits, levels.get(field))
            for field, title, note, digits, limits in (*losses, *MEASURES)
            if (points := _series(run.metrics, field))
        ],
        "run": run,
        "bars": usage_bars(run.pictures.get("cluster_usage", np.zeros(0))),
    }


def _series(metrics: list[dict[str, Any]], field: str) -> list[tuple[float, float]]:
    """(epoch, value) of every epoch that has a finite value for `field`."""
    return [
        (float(row.get("epoch", index)), float(row[field]))
        for index, row in enumerate(metrics, 1)
        if isinstance(row.get(field), int | float) and math.isfinite(row[field])
    ]


def ticks(low: float, high: float, count: int = 3) -> list[float]:
    """Round numbers inside low..high, about `count` of them; `low` alone where both are equal."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    base = 10 ** math.floor(math.log10(rough))
    step = min((m * base for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - rough))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def line_chart(
    points: Sequence[tuple[float, float]],
    title: str,
    note: str,
    digits: int,
    limits: tuple[float, float] | None,
    reference: tuple[float, str] | None,
) -> dict[str, Any]:
    """A curve through `points` (epoch, value), with its last value in the caption.

    `limits` fixes the value axis; `reference` is a dashed level with its name for the note.
    """
    values = [y for _, y in points] + ([reference[0]] if reference else [])
    space = 0.08 * (max(values) - min(values)) or max(abs(max(values)) * 0.1, 1e-3)
    low, high = limits or (min(values) - space, max(values) + space)
    first, last = points[0][0], points[-1][0]

    def across(x: float) -> float:
        share = (x - first) / (last - first) if last > first else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def up(y: float) -> float:
        share = (y - low) / (high - low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    return {
        "title": title,
        "note": f"{note}; dashed: {reference[1]}" if reference else note,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "ticks": [(up(t), _tick(t)) for t in ticks(low, high) if digits or not t % 1],
        "level": up(reference[0]) if reference else None,
        "first_epoch": f"{first:g}",
        "last_epoch": f"{last:g}",
        "last": number(points[-1][1], digits),
        "places": [[across(x), up(y)] for x, y in points],
        "labels": [f"epoch {x:g}: {number(y, digits)}" for x, y in points],
    }


def _tick(value: float) -> str:
    plain = not value or 1e-3 <= abs(value) < 1e5
    return (f"{value:g}" if plain else f"{value:.0e}").replace("-", MINUS)


def usage_bars(usage: np.ndarray) -> dict[str, Any] | None:
    """Bars of the shares [D_v], largest first, with a level where all would be equal."""
    shares = np.nan_to_num(usage.astype(float))
    if not shares.size:
        return None
    order = np.argsort(-shares, kind="stable")
    heights = 196 * shares[order] / max(shares.max(), 1e-12)
    step = 1000 / len(shares)
    return {
        "bars": [
            (round(n * step, 2), round(200 - height, 2), round(max(0.6, height), 2))
            for n, height in enumerate(heights)
        ],
        "width": round(step - min(1.5, step / 5), 2),
        "level": round(200 - 196 / len(shares) / max(shares.max(), 1e-12), 1),
        "labels": [f"cluster {k}: {percent(shares[k])}%" for k in order],
        "largest": shares.max(),
        "even": 1 / len(shares),
        "smallest": shares.min(),
    }
