"""How training went: losses, agreement with the classes, and use of the clusters."""

import math
from typing import Any

import numpy as np

from vgse.report.charts import line_chart, usage_bars
from vgse.report.page import notice, number, percent
from vgse.report.run_files import Missing, RunFiles, need

LOSSES = (
    ("loss", "Loss", "all terms, weighted"),
    ("classification", "Classification", "names the class from the clusters"),
    ("semantic", "Semantic", "finds the word vector from the clusters"),
    ("consistency", "Consistency", "neighbouring patches share clusters"),
    ("entropy", "Entropy", "lower when all clusters are in use"),
)


def curves_section(run: RunFiles) -> str:
    """Small multiples of the losses, NMI, cluster use and speed, and the bars of cluster use."""
    return _curves(run) + _usage(run)


def series(metrics: list[dict[str, Any]], field: str) -> list[tuple[float, float]]:
    """(epoch, value) of every epoch that has a finite value for `field`."""
    points = []
    for number_of, epoch in enumerate(metrics, 1):
        value = epoch.get(field)
        if isinstance(value, int | float) and math.isfinite(value):
            points.append((float(epoch.get("epoch", number_of)), float(value)))
    return points


def _curves(run: RunFiles) -> str:
    if not run.metrics:
        return notice(Missing("metrics.jsonl"))
    charts = []
    for field, title, note in LOSSES:
        if points := series(run.metrics, field):
            charts.append(line_chart(title, note, points, digits=3))
    measures = run.evaluation.get("clusters", {})
    if points := series(run.metrics, "nmi"):
        kmeans = measures.get("nmi_kmeans")
        level = None if kmeans is None else (float(kmeans), f"k-means {number(kmeans)}")
        note = "what clusters tell of classes"
        charts.append(line_chart("NMI", note, points, reference=level, digits=3))
    if points := series(run.metrics, "used_clusters"):
        total = measures.get("num_clusters")
        level = None if total is None else (float(total), f"all {total}")
        charts.append(
            line_chart("Clusters in use", "with a patch", points, reference=level, digits=0)
        )
    if points := series(run.metrics, "usage_entropy"):
        charts.append(
            line_chart("Evenness of use", "1 when all are used alike", points, limits=(0.0, 1.05))
        )
    if points := series(run.metrics, "images_per_second"):
        charts.append(line_chart("Images a second", "all workers together", points, digits=0))
    if not charts:
        return notice(Missing("metrics.jsonl", "loss"))
    return f'<div class="charts">{"".join(charts)}</div>'


def _usage(run: RunFiles) -> str:
    try:
        need(run.pictures, "pictures.npz", "cluster_usage")
    except Missing as missing:
        return notice(missing)
    usage = np.nan_to_num(run.pictures["cluster_usage"].astype(float))
    if not usage.size:
        return ""
    labels = [f"cluster {k}: {percent(share)}%" for k, share in enumerate(usage)]
    return (
        "<h3>Share of patches in each cluster</h3>"
        f"{usage_bars(usage.tolist(), labels)}"
        f'<p class="axis ends"><span>largest {percent(usage.max())}%</span>'
        f"<span>dashed: all alike, {percent(1 / len(usage))}%</span>"
        f"<span>smallest {percent(usage.min())}%</span></p>"
    )
