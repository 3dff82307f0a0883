"""The stages after the embedding pass, each done once: relations to report."""

import functools

from rich.markup import escape

from distributed.display import Display, Stage
from distributed.embedding import files as embedding_files
from distributed.embedding.embed import Embedded
from distributed.embedding.files import load_embedded
from distributed.embedding.pictures import gather_pictures
from distributed.embedding.results import cluster_measures, relate_classes, write_health
from distributed.setup import Prepared
from distributed.stages import RunFolder, digest, download, run_stage
from vgse.config import RunConfig, to_dict
from vgse.files import read_mapping, write_arrays
from vgse.report import write_report
from vgse.run_folder import evaluate_run
from vgse.zsl.show import evaluation_table

RELATIONS = (
    "class_embeddings.npz",
    "class_embeddings.safetensors",
    "relations.npz",
    "VGSE_SMO_splits.mat",
)
_REPORT_READS = (
    *("config.yaml", "metrics.jsonl", "class_embeddings.npz", "relations.npz", "pictures.npz"),
    *("image_features.npz", "evaluation.json", "health.json"),
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
        download(run, *embedding_files.FILES)
        return load_embedded(folder)

    def relations(stage: Stage) -> None:
        classes, gap = relate_classes(config, prepared, embedded(), folder)
        stage.summary = (
            f"{len(classes.unseen)} unseen classes from {len(classes.seen)} seen ones, "
            f"largest duality gap {gap:.0e}"
        )

    def pictures(stage: Stage) -> None:
        arrays = gather_pictures(config, prepared, embedded().images)
        write_arrays(folder / "pictures.npz", arrays)
        shown, classes = len(arrays["cluster_ids"]), len(prepared.manifest.class_names)
        stage.summary = f"{shown} clusters, {classes} classes"

    def health_file(stage: Stage) -> None:
        download(run, "metrics.jsonl")
        clusters = cluster_measures(prepared, embedded(), config.model.num_clusters)
        found = write_health(folder, config, prepared, clusters)
        stage.summary = ", ".join(finding["cause"] for finding in found) or "nothing to report"

    def evaluation(stage: Stage) -> None:
        download(run, "class_embeddings.npz", "image_features.npz", "health.json")
        content = evaluate_run(
            folder,
            config.evaluation,
            config.relations,
            config.seed,
            clusters=read_mapping(folder / "health.json")["clusters"],
        )
        rows, models = len(content["rows"]), len(content["models"])
        stage.summary = f"{rows} rows by {models} zero-shot models"

    def report(stage: Stage) -> None:
        download(run, *_REPORT_READS)
        write_report(folder)
        stage.summary = "report.html"

    sections = to_dict(config)
    related = digest(embedding, sections["relations"])
    pictured = digest(embedding, config.seed)
    evaluated = digest(related, sections["evaluation"], config.seed)
    healthy = digest(embedding, "health")
    for name, inputs, files, work in (
        ("relations", related, RELATIONS, relations),
        ("pictures", pictured, ["pictures.npz"], pictures),
        ("health", healthy, ["health.json"], health_file),
        ("evaluation", evaluated, ["evaluation.json"], evaluation),
        ("report", digest(pictured, healthy, evaluated), ["report.html"], report),
    ):
        run_stage(run, name, inputs, files, work, display, redo=redo)
    download(run, "evaluation.json", "health.json", "report.html")
    evaluated_rows = read_mapping(folder / "evaluation.json")
    display.console.print(evaluation_table(evaluated_rows))
    display.line(escape(evaluated_rows["summary"]))
    for finding in read_mapping(folder / "health.json")["findings"]:
        display.line(f"[yellow]{finding['cause']}[/yellow]: {escape(finding['sentence'])}")
