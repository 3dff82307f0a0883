"""A map of patches: t-SNE of their features, coloured by cluster, with thumbnails."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from vgse.report.page import data_block, esc
from vgse.report.pictures import Pixels, resize, sheet, webp
from vgse.report.run_files import RunFiles, need

MAX_POINTS = 1500
MIN_POINTS = 10
WIDTH, HEIGHT, MARGIN = 1000, 720, 36
THUMBNAIL = 32
SHEET_COLUMNS = 40


def tsne_section(run: RunFiles) -> tuple[str, str]:
    """The section's body and the style rule that holds the thumbnails for hovering."""
    content = run.pictures
    need(content, "pictures.npz", "tsne_features", "tsne_cluster", "tsne_class", "tsne_pictures")
    features = np.asarray(content["tsne_features"], np.float32)
    rows = usable_rows(features)
    if len(rows) < MIN_POINTS or float(features[rows].std(axis=0).max(initial=0)) < 1e-9:
        return '<p class="notice">Too few different patches for a map.</p>', ""
    clusters = content["tsne_cluster"][rows].astype(int)
    names = [str(name) for name in content["tsne_class"][rows]]
    pictures = resize(content["tsne_pictures"][rows], THUMBNAIL)
    points = fit_points(patch_map(features[rows]))
    classes = sorted(set(names))
    options = "".join(f"<option value={n}>{esc(name)}</option>" for n, name in enumerate(classes))
    data = {
        "classes": classes,
        "class": [classes.index(name) for name in names],
        "cluster": clusters.tolist(),
        "points": points.round(1).tolist(),
        "columns": SHEET_COLUMNS,
    }
    style = f".patch{{background-image:url({webp(sheet(pictures, SHEET_COLUMNS), 60)})}}"
    body = (
        f"<p>{len(rows):,} patches; those with similar cluster assignments lie close together, "
        "and a colour stands for a cluster. Point at one to see its patch and light up its "
        "cluster, or pick a class.</p>"
        '<p class="controls"><label>Light up a class <select id="tsne-class" autocomplete="off">'
        f"<option value=''>none</option>{options}</select></label></p>"
        + _svg(points, clusters, names, pictures)
        + data_block("tsne-data", data)
    )
    return body, style


def usable_rows(features: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Finite rows of features [T, D], at most MAX_POINTS of them, evenly spread."""
    rows = np.flatnonzero(np.isfinite(features).all(axis=1))
    if len(rows) > MAX_POINTS:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_POINTS).astype(np.int64)]
    return rows


def patch_map(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Positions f32 [T, 2] by PCA (at most 40 dimensions) and t-SNE, the same on every call."""
    count = len(features)
    with threadpool_limits(limits=1):
        size = min(40, count - 1, features.shape[1])
        reduced = PCA(size, svd_solver="full", random_state=0).fit_transform(features)
        tsne = TSNE(
            init="pca",
            perplexity=min(30.0, (count - 1) / 4),
            max_iter=500,
            random_state=0,
            n_jobs=1,
        )
        return np.asarray(tsne.fit_transform(reduced), np.float32)


def fit_points(points: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Positions [T, 2] stretched into the drawing; the outermost 0.5% are moved to its edge."""
    low, high = np.quantile(points, [0.005, 0.995], axis=0)
    share = np.clip((points - low) / np.maximum(high - low, 1e-9), 0, 1)
    room = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN])
    return np.asarray(MARGIN + share * room, np.float64)


def colour(cluster: int) -> str:
    """A colour for a cluster; the golden angle keeps neighbouring numbers apart."""
    hue = (cluster * 137.508) % 360
    return f"hsl({hue:.0f} {58 + 14 * (cluster % 2)}% {44 + 8 * (cluster // 2 % 3)}%)"


def thumbnail_rows(
    points: npt.NDArray[np.float64], spacing: float, taken: Sequence[int] = ()
) -> list[int]:
    """Rows of points [T, 2] at least `spacing` apart and from `taken`, dense places first."""
    apart = np.abs(points[:, None] - points[None]).max(axis=2)  # [T, T]
    free = (apart[:, list(taken)] >= spacing).all(axis=1)
    chosen = []
    for row in np.argsort(-(apart < spacing).sum(axis=1), kind="stable"):
        if free[row]:
            chosen.append(int(row))
            free &= apart[row] >= spacing
    return chosen


def _svg(
    points: npt.NDArray[np.float64],
    clusters: npt.NDArray[Any],
    names: list[str],
    pictures: Pixels,
) -> str:
    groups = ""
    wide = thumbnail_rows(points, 90)  # these alone are shown, larger, on a narrow screen
    thumbnails = wide + thumbnail_rows(points, 44, wide)
    half = THUMBNAIL / 2
    for cluster in np.unique(clusters):
        marks = ""
        for member in np.flatnonzero(clusters == cluster):
            x, y = points[member]
            marks += f'<circle data-i="{member}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        groups += f'<g class="k" data-k="{cluster}" fill="{colour(int(cluster))}">{marks}</g>'
    tiles = ""
    for row in sorted(thumbnails):
        x, y = points[row] - half
        size = f'x="{x:.1f}" y="{y:.1f}" width="{THUMBNAIL}" height="{THUMBNAIL}"'
        kind, cluster = "t wide" if row in wide else "t", int(clusters[row])
        tiles += (
            f'<g class="{kind}" data-i="{row}" data-k="{cluster}" stroke="{colour(cluster)}">'
            f'<image {size} href="{webp(pictures[row], 65)}"/><rect {size} rx="2" fill="none"/></g>'
        )
    label = f"t-SNE map of {len(points)} patches of {len(set(names))} classes"
    return (
        f'<svg id="tsne" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{groups}{tiles}</svg>"
    )
