"""The stages after the embedding pass, each done once: relations to report."""

import functools
import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from distributed.display import Display, Stage
from distributed.embedding.embed import FILES, Embedded, EmbeddedImages, load_embedded
from distributed.embedding.pictures import gather_pictures
from distributed.setup import Prepared
from distributed.stages import RunFolder, digest, download, run_stage
from distributed.train.metrics import LOADING, read_metrics
from shards.loader import LoadTimes
from shards.objects import is_remote
from vgse import health
from vgse.config import RunConfig, to_dict
from vgse.embeddings import ClassSums, class_embeddings
from vgse.files import read_mapping, write_arrays, write_json
from vgse.formats import ClassEmbeddings
from vgse.relations.predict import selection_line
from vgse.report import write_report
from vgse.run_folder import evaluate_run, export_splits, write_knowledge, write_relations
from vgse.zsl.show import evaluation_table

_RELATIONS = (
    *("class_embeddings.npz", "class_embeddings.safetensors"),
    *("relations.npz", "relations.json", "knowledge.npz", "VGSE_SMO_splits.mat"),
)
_REPORT_READS = (
    *("config.yaml", "metrics.jsonl", "class_embeddings.npz", "relations.npz", "pictures.npz"),
    *("image_features.npz", "evaluation.json", "health.json"),
    *("relations.json", "knowledge.npz"),
)


def write_results(
    config: RunConfig,
    prepared: Prepared,
    run: RunFolder,
    embedding: str,
    display: Display,
    *,
    redo: bool,
) -> None:
    """Relate, evaluate and report, as far as it is not done or where it is to be done again.

    `embedding` is the digest of what the embedding pass's files were made from.
    """
    folder = run.local

    @functools.cache
    def embedded() -> Embedded:
        download(run, *FILES)
        return load_embedded(folder)

    def relations(stage: Stage) -> None:
        own = own_embeddings(prepared, embedded())
        words, seen, unseen = prepared.word_vectors, prepared.seen, prepared.unseen
        classes = ClassEmbeddings(
            class_names=prepared.manifest.class_names,
            embeddings=own.astype(np.float32),
            own_embeddings=own.astype(np.float32),
            word_vectors=words.astype(np.float32),
            seen=seen,
            unseen=unseen,
            val=prepared.val,
        )
        knowledge = prepared.knowledge
        write_knowledge(folder, knowledge)
        _, related, choice = write_relations(
            folder, classes, words, knowledge, config.relations, config.seed, own
        )
        export_splits(folder, folder)
        stage.summary = f"{selection_line(choice)}; duality gap {related.smo.gap.max():.0e}"

    def pictures(stage: Stage) -> None:
        arrays = gather_pictures(config, prepared, embedded().images)
        write_arrays(folder / "pictures.npz", arrays)
        shown, classes = len(arrays["cluster_ids"]), len(prepared.manifest.class_names)
        stage.summary = f"{shown} clusters, {classes} classes"

    def health_file(stage: Stage) -> None:
        download(run, "metrics.jsonl")
        rows, num_clusters = read_metrics(folder), config.model.num_clusters
        last = rows[-1] if rows else {}
        found = health.findings(rows, num_clusters, len(prepared.trained))
        loading = explain_loading(config, last)
        if loading is not None:  # says which part, where a general sentence cannot
            found = [finding for finding in found if finding["cause"] != "slow loading"]
            found.append({"cause": "slow loading", "sentence": loading})
        download(run, "relations.json")
        if warning := read_mapping(folder / "relations.json")["warning"]:
            found.append({"cause": "knowledge of names", "sentence": warning})
        manifest = prepared.manifest
        content = {
            "findings": found,
            "images_per_second": last.get("images_per_second"),
            "loader_stall": last.get("loader_stall"),
            "clusters": cluster_measures(prepared, embedded(), num_clusters),
            "data": {"name": manifest.source, "licence": manifest.licence},
        }
        write_json(folder / "health.json", content)
        stage.summary = ", ".join(finding["cause"] for finding in found) or "nothing to report"

    def evaluation(stage: Stage) -> None:
        download(run, *_RELATIONS, "image_features.npz", "health.json")
        clusters = read_mapping(folder / "health.json")["clusters"]
        content = evaluate_run(
            folder, config.evaluation, config.relations, config.seed, clusters=clusters
        )
        rows, models = len(content["rows"]), len(content["models"])
        stage.summary = f"{rows} rows by {models} zero-shot models"

    def report(stage: Stage) -> None:
        download(run, *_REPORT_READS)
        write_report(folder)
        stage.summary = "report.html"

    sections = to_dict(config)
    tables = [source.rows.tobytes() for source in prepared.knowledge.sources]
    known = hashlib.sha256(b"".join(tables)).hexdigest()
    weights = [source.weight for source in prepared.knowledge.sources]
    related = digest(embedding, sections["relations"], known, weights, config.seed)
    pictured = digest(embedding, config.seed)
    evaluated = digest(related, sections["evaluation"], config.seed)
    healthy = digest(related, "health")
    for name, inputs, files, work in (
        ("relations", related, _RELATIONS, relations),
        ("pictures", pictured, ["pictures.npz"], pictures),
        ("health", healthy, ["health.json"], health_file),
        ("evaluation", evaluated, ["evaluation.json"], evaluation),
        ("report", digest(pictured, healthy, evaluated), ["report.html"], report),
    ):
        run_stage(run, name, inputs, files, work, display, redo=redo)
    download(run, "evaluation.json", "health.json", "report.html")
    evaluated_rows = read_mapping(folder / "evaluation.json")
    display.console.print(evaluation_table(evaluated_rows))
    display.line(evaluated_rows["summary"])
    for finding in read_mapping(folder / "health.json")["findings"]:
        cause, sentence = finding["cause"], finding["sentence"]
        display.line(Text.assemble((cause, "yellow"), f": {sentence}"))


def own_embeddings(prepared: Prepared, embedded: Embedded) -> NDArray[np.float64]:
    """φ of every class from its own images [C, D_v]: seen ones from training images, unseen ones
    from their test images; NaN for classes that are left out."""
    own = class_embeddings(embedded.sums["train"])
    own[prepared.unseen] = class_embeddings(embedded.sums["test_unseen"])[prepared.unseen]
    kept = np.union1d(prepared.seen, prepared.unseen)
    own[np.setdiff1d(np.arange(len(own)), kept)] = np.nan
    return own


def cluster_measures(prepared: Prepared, embedded: Embedded, num_clusters: int) -> dict[str, Any]:
    """The clusters on held-out images, trained and (with a frozen θ) as k-means left them."""
    images = embedded.images
    measures = _measures(prepared, embedded.sums, images.assignments, images)
    if images.start_assignments is not None:
        start = _measures(prepared, embedded.start_sums, images.start_assignments, images)
        measures |= {f"{name}_kmeans": value for name, value in start.items()}
    used, entropy = health.usage(embedded.sums["train"].contingency.sum(0))
    usage = {"used_clusters": used, "usage_entropy": entropy, "num_clusters": num_clusters}
    return measures | usage


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


def explain_loading(config: RunConfig, row: dict[str, Any]) -> str | None:
    """A sentence that names the slowest part of loading and what to change, where training waited
    for it in more than 5% of an epoch's time; `row` is the epoch's in metrics.jsonl."""
    times = LoadTimes(**{name: row.get(f"loader_{name}_seconds", 0.0) for name in LOADING})
    stall, whole = row.get("loader_stall", 0.0), times.busy + times.idle
    if stall <= 0.05 or whole <= 0:
        return None
    workers = config.cluster.loader_workers
    more = "raise cluster.loader_workers, so that loading runs beside training"
    read = "disk: move the shards to a faster disk, or copy them to one beside the GPUs"
    cut = ""
    if workers:
        more = f"raise cluster.loader_workers (now {workers}) if cores are idle, or pack"
        more, cut = f"{more} with a smaller --short_side", ", or cut on the accelerator"
    if is_remote(config.data.shards):
        read = (
            "network: keep shards in a local cache, raise cluster.loader_workers to have more "
            "reads at once, or bring the store nearer"
        )
    parts = {
        f"waiting for the {read}": times.read,
        f"decoding JPEGs: {more}": times.decode,
        f"resizing and copying pictures: {more}{cut}": times.cut,
    }
    if workers and times.idle > times.busy:  # what is slow lies between readers and trainer
        part = (
            "handing batches over: pack with a smaller --short_side, lower cluster.loader_workers "
            "if the cores are full, and see whether /dev/shm is large enough"
        )
        parts = {part: times.idle}
    slowest = max(parts, key=lambda part: parts[part])
    share = parts[slowest] / (whole if workers else times.busy)
    return (
        f"training waited for data {stall:.0%} of the time, and loaders spent {share:.0%} of "
        f"theirs {slowest}"
    )
