"""What a run finds out: class embeddings, relations, measures of the clusters, and its health."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed.embedding.embed import Embedded, EmbeddedImages
from distributed.setup import Prepared
from distributed.train.metrics import LOADING, read_metrics
from shards.loader_health import LoadTimes, explain_stall
from shards.objects import is_remote
from vgse import health
from vgse.config import RunConfig
from vgse.embeddings import ClassSums, class_embeddings
from vgse.files import write_json
from vgse.formats import ClassEmbeddings
from vgse.relations.predict import predict_unseen, relate
from vgse.run_folder import export_splits, write_classes


def own_embeddings(prepared: Prepared, embedded: Embedded) -> NDArray[np.float64]:
    """φ of every class from its own images [C, D_v]: seen ones from training images, unseen ones
    from their test images; NaN for classes that are left out."""
    own = class_embeddings(embedded.sums["train"])
    own[prepared.unseen] = class_embeddings(embedded.sums["test_unseen"])[prepared.unseen]
    kept = np.union1d(prepared.seen, prepared.unseen)
    own[np.setdiff1d(np.arange(len(own)), kept)] = np.nan
    return own


def relate_classes(
    config: RunConfig, prepared: Prepared, embedded: Embedded, run: Path
) -> tuple[ClassEmbeddings, float]:
    """Solve the relations; write embeddings, relations and the split file.

    Returns the class embeddings and the largest relative duality gap.
    """
    own = own_embeddings(prepared, embedded)
    words, seen, unseen = prepared.word_vectors, prepared.seen, prepared.unseen
    related = relate(words, seen, unseen, config.relations)
    classes = ClassEmbeddings(
        class_names=prepared.manifest.class_names,
        embeddings=predict_unseen(own, related, seen, unseen),
        own_embeddings=own.astype(np.float32),
        word_vectors=words.astype(np.float32),
        seen=seen,
        unseen=unseen,
        val=prepared.val,
    )
    write_classes(run, classes, related)
    export_splits(run, run)
    return classes, float(related.smo.gap.max())


def cluster_measures(prepared: Prepared, embedded: Embedded, num_clusters: int) -> dict[str, Any]:
    """The clusters by themselves, on held-out images, trained and (with a frozen θ) as k-means
    left them."""
    images = embedded.images
    measures = _measures(prepared, embedded.sums, images.assignments, images)
    if images.start_assignments is not None:
        start = _measures(prepared, embedded.start_sums, images.start_assignments, images)
        measures |= {f"{name}_kmeans": value for name, value in start.items()}
    used, entropy = health.usage(embedded.sums["train"].contingency.sum(0))
    return {
        **measures,
        "used_clusters": used,
        "usage_entropy": entropy,
        "num_clusters": num_clusters,
    }


def _measures(
    prepared: Prepared,
    sums: dict[str, ClassSums],
    assignments: NDArray[np.float32],
    images: EmbeddedImages,
) -> dict[str, float]:
    labels, split = images.labels, np.array(images.splits)
    means = class_embeddings(sums["train"])
    measures = {}
    held_out = split == "test_seen"
    if held_out.any():
        measures["nmi"] = health.normalised_mutual_information(sums["test_seen"].contingency)
        measures["nearest_class_mean"] = health.nearest_class_mean(
            assignments[held_out], labels[held_out], means, prepared.seen
        )
    # An unseen class has no training images: half of its images make the mean, half are scored.
    unseen = np.flatnonzero(split == "test_unseen")
    half = np.arange(len(unseen)) % 2 == 0
    halves = np.full_like(means, np.nan)
    for label in prepared.unseen:
        own = unseen[half & (labels[unseen] == label)]
        if len(own):
            halves[label] = assignments[own].mean(0, dtype=np.float64)
    known = prepared.unseen[np.isfinite(halves[prepared.unseen]).all(1)]
    scored = unseen[~half]
    measures["nearest_class_mean_unseen"] = health.nearest_class_mean(
        assignments[scored], labels[scored], halves, known
    )
    return measures


def write_health(
    run: Path, config: RunConfig, prepared: Prepared, clusters: dict[str, Any]
) -> list[dict[str, str]]:
    """Write health.json; returns its findings."""
    metrics = read_metrics(run)
    found = health.findings(metrics, config.model.num_clusters, len(prepared.trained))
    last = metrics[-1] if metrics else {}
    loading = explain_loading(config, last)
    if loading is not None:  # says which part, where a general sentence cannot
        found = [finding for finding in found if finding["cause"] != "slow loading"]
        found.append({"cause": "slow loading", "sentence": loading})
    manifest = prepared.manifest
    write_json(
        run / "health.json",
        {
            "findings": found,
            "images_per_second": last.get("images_per_second"),
            "loader_stall": last.get("loader_stall"),
            "clusters": clusters,
            "data": {"name": manifest.source, "licence": manifest.licence},
        },
    )
    return found


def explain_loading(config: RunConfig, row: dict[str, Any]) -> str | None:
    """A sentence that names the slowest part of loading, where training waited for it."""
    names = {name: row.get(f"loader_{name}_seconds", 0.0) for name in LOADING}
    return explain_stall(
        row.get("loader_stall", 0.0),
        LoadTimes(**names),
        loader_workers=config.cluster.loader_workers,
        remote=is_remote(config.data.shards),
    )
