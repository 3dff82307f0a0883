"""The stages after the embedding pass, each done once: relations to report."""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from distributed.display import Display, Stage
from distributed.embedding.files import FILES, Embedded, EmbeddedImages, PartFiles, load_embedded
from distributed.embedding.pictures import gather_pictures
from distributed.setup import Prepared
from distributed.stages import RunFolder, digest, download, run_stage
from distributed.train.metrics import LOADING, read_metrics
from shards.loader import LoadTimes
from shards.objects import is_remote
from vgse import health
from vgse.config import RunConfig, to_dict
from vgse.embeddings import class_embeddings
from vgse.files import read_mapping, write_arrays, write_json
from vgse.formats import ClassEmbeddings, Indices
from vgse.images.image_features import INDEX, read_index
from vgse.knowledge.sparse_rows import row_parts
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
    *(FILES[0], INDEX, "evaluation.json", "health.json"),
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
        download(run, *FILES, INDEX)
        return load_embedded(folder, run.url)

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
            folder,
            classes,
            words,
            knowledge,
            config.relations,
            config.seed,
            own,
            config.evaluation.folds,
        )
        export_splits(folder, folder)
        stage.summary = f"{selection_line(choice)}; duality gap {related.smo.gap.max():.0e}"

    def pictures(stage: Stage) -> None:
        arrays = gather_pictures(config, prepared, embedded())
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
        download(run, *_RELATIONS, FILES[0], INDEX, "health.json")
        clusters = read_mapping(folder / "health.json")["clusters"]
        index = read_index(folder)
        parts = None
        if index is not None and is_remote(run.url):
            parts = PartFiles(run.url, index.num_parts).features()
        content = evaluate_run(
            folder,
            config.evaluation,
            config.relations,
            config.seed,
            clusters=clusters,
            parts=parts,
        )
        rows, models = len(content["rows"]), len(content["models"])
        stage.summary = f"{rows} rows by {models} zero-shot models"
        if sample := content.get("sample"):
            stage.summary += f", on {sample['images']:,} of {sample['of']:,} images"

    def report(stage: Stage) -> None:
        download(run, *_REPORT_READS)
        write_report(folder)
        stage.summary = "report.html"

    sections = to_dict(config)
    tables = hashlib.sha256()
    for source in prepared.knowledge.sources:
        for row in row_parts(source.rows):  # a whole table may take gigabytes
            tables.update(row.astype(np.float64).tobytes())
    known = tables.hexdigest()
    weights = [source.weight for source in prepared.knowledge.sources]
    folds = config.evaluation.folds
    related = digest(embedding, sections["relations"], known, weights, config.seed, folds)
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
    heads = {"": (embedded.sums, "assignments")}
    if embedded.start_sums:
        heads["_kmeans"] = (embedded.start_sums, "start_assignments")
    size = (len(prepared.manifest.class_names), num_clusters)
    means = {name: class_embeddings(sums["train"]) for name, (sums, _) in heads.items()}
    # An unseen class has no training images: half of its images make the mean, half are scored.
    halves = {name: np.zeros(size) for name in heads}
    counts = np.zeros((size[0], 1))
    hits: dict[str, Any] = dict.fromkeys(heads, 0)
    for images, held_out, first, _ in _test_images(embedded.parts):
        np.add.at(counts, images.labels[first], 1)
        for name, (_, field) in heads.items():
            points = getattr(images, field)
            np.add.at(halves[name], images.labels[first], points[first])
            hits[name] += health.nearest_class_hits(
                points[held_out], images.labels[held_out], means[name], prepared.seen
            )
    unseen_hits: dict[str, Any] = dict.fromkeys(heads, 0)
    known = prepared.unseen[counts[prepared.unseen, 0] > 0]
    for images, _, _, second in _test_images(embedded.parts):
        for name, (_, field) in heads.items():
            unseen_hits[name] += health.nearest_class_hits(
                getattr(images, field)[second],
                images.labels[second],
                halves[name] / np.maximum(counts, 1),
                known,
            )
    measures: dict[str, Any] = {}
    for name, (sums, _) in heads.items():
        if "test_seen" in sums:
            contingency = sums["test_seen"].contingency
            measures[f"nmi{name}"] = health.normalised_mutual_information(contingency)
            measures[f"nearest_class_mean{name}"] = health.mean_accuracy(hits[name])
        unseen_accuracy = health.mean_accuracy(unseen_hits[name])
        measures[f"nearest_class_mean_unseen{name}"] = unseen_accuracy
    used, entropy = health.usage(embedded.sums["train"].contingency.sum(0))
    usage = {"used_clusters": used, "usage_entropy": entropy, "num_clusters": num_clusters}
    return measures | usage


def _test_images(
    parts: Iterable[EmbeddedImages],
) -> Iterator[tuple[EmbeddedImages, Indices, Indices, Indices]]:
    """Each part with its rows of test images of seen classes, and of unseen ones, every other image
    of them all for each half."""
    before = 0
    for images in parts:
        split = np.array(images.splits)
        unseen = np.flatnonzero(split == "test_unseen")
        first = (before + np.arange(len(unseen))) % 2 == 0
        before += len(unseen)
        yield images, np.flatnonzero(split == "test_seen"), unseen[first], unseen[~first]


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
