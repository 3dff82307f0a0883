"""A map of patches: t-SNE of their features, coloured by cluster, with thumbnails."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vgse.report.pictures import resize, sheet, webp
from vgse.report.run_files import RunFiles, need

MAX_POINTS = 1500
MIN_POINTS = 10
WIDTH, HEIGHT, MARGIN = 1000, 720, 36
THUMBNAIL = 32
SHEET_COLUMNS = 40


def map_section(run: RunFiles) -> dict[str, Any]:
    """Circles by cluster, thumbnails, and the style rule that holds the patches for hovering."""
    content = run.pictures
    need(content, "pictures.npz", "tsne_features", "tsne_cluster", "tsne_class", "tsne_pictures")
    features = np.asarray(content["tsne_features"], np.float32)
    rows = np.flatnonzero(np.isfinite(features).all(axis=1))
    if len(rows) > MAX_POINTS:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_POINTS).astype(int)]
    if len(rows) < MIN_POINTS or float(features[rows].std(axis=0).max(initial=0)) < 1e-9:
        return {"groups": []}
    clusters = content["tsne_cluster"][rows].astype(int)
    pictures = resize(content["tsne_pictures"][rows], THUMBNAIL)
    points = fit_points(patch_map(features[rows]))
    classes, labels = np.unique(content["tsne_class"][rows], return_inverse=True)
    wide = thumbnail_rows(points, 90)  # these alone are shown, larger, on a narrow screen
    thumbnails = [
        {
            "patch": row,
            "cluster": clusters[row],
            "colour": colour(clusters[row]),
            "wide": row in wide,
            "x": round(points[row, 0] - THUMBNAIL / 2, 1),
            "y": round(points[row, 1] - THUMBNAIL / 2, 1),
            "src": webp(pictures[row], 65),
        }
        for row in sorted(wide + thumbnail_rows(points, 44, wide))
    ]
    return {
        "style": f".patch{{background-image:url({webp(sheet(pictures, SHEET_COLUMNS), 60)})}}",
        "num_patches": len(rows),
        "width": WIDTH,
        "height": HEIGHT,
        "side": THUMBNAIL,
        "groups": [
            {"cluster": k, "colour": colour(k), "patches": np.flatnonzero(clusters == k)}
            for k in np.unique(clusters)
        ],
        "thumbnails": thumbnails,
        "data": {
            "classes": [str(name) for name in classes],
            "class": labels.tolist(),
            "cluster": clusters.tolist(),
            "points": points.round(1).tolist(),
            "columns": SHEET_COLUMNS,
        },
    }


def patch_map(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Positions f32 [T, 2] by PCA (at most 40 dimensions) and t-SNE, the same on every call."""
    # Here: a driver evaluates before it reports, in 58 MB less.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(features)
    with threadpool_limits(limits=1):
        size = min(40, count - 1, features.shape[1])
        reduced = PCA(size, svd_solver="full", random_state=0).fit_transform(features)
        perplexity = min(30.0, (count - 1) / 4)
        tsne = TSNE(init="pca", perplexity=perplexity, max_iter=500, random_state=0, n_jobs=1)
        return np.asarray(tsne.fit_transform(reduced), np.float32)


def fit_points(points: NDArray[np.float32]) -> NDArray[np.float64]:
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
    points: NDArray[np.float64], spacing: float, taken: Sequence[int] = ()
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
