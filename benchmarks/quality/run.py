"""One setting on one split, without Ray: start, train, embed, measure, evaluate; kept as JSON."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.controls import shuffle_labels
from benchmarks.quality.settings import Setting, relation_rows
from distributed.embedding.embed import Encoder, embed_units
from distributed.embedding.files import Embedded
from distributed.embedding.results import cluster_measures, own_embeddings
from distributed.features.cache import FeatureSpec, access_of, cache_folder, feature_spec, units_of
from distributed.features.extract import compute_unit
from distributed.features.kmeans_init import make_start
from distributed.setup import Prepared, prepare
from distributed.storage import absolute
from distributed.train.ray_trainer import training_job
from distributed.train.trainer import TrainingJob, build_model, train_alone
from shards.manifest import SPLITS
from vgse.config import RunConfig, to_dict
from vgse.files import write_json
from vgse.formats import ClassEmbeddings
from vgse.images.devices import cpu_precision
from vgse.images.image_features import ImageFeatures
from vgse.relations.predict import ChosenKnowledge, choose_knowledge
from vgse.run_folder import zsl_data_of
from vgse.zsl.data import Indices, ZslData, with_validation
from vgse.zsl.rows import Row
from vgse.zsl.table import evaluate

VERSION = 3  # of what a stored result means: a new one computes everything anew
KEPT = ("zsl", "seen", "unseen", "harmonic_mean", "val_zsl")


@dataclass(frozen=True)
class Task:
    """A setting on one split, and the file of its result."""

    setting: Setting
    config: RunConfig  # the setting's, with the roles of the split
    prepared: Prepared
    file: Path

    @property
    def split(self) -> str:
        """What the split is called, as a run of a repeat is."""
        return split_name(self.config.data.split_seed)

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return self.file.is_file()

    def result(self) -> dict[str, Any]:
        """The stored result; see `run`."""
        found: dict[str, Any] = json.loads(self.file.read_text())
        return found


def split_name(split_seed: int | None) -> str:
    """What a draw of the unseen classes is called."""
    return "packed" if split_seed is None else f"split-{split_seed}"


def task_of(setting: Setting, split_seed: int | None, work: Path) -> Task:
    """The task of a setting on a draw of the unseen classes; None: on those that were packed.

    Two settings that come to the same share a file. Raises ValueError for a data set or words
    that cannot be used.
    """
    config = replace(setting.config, data=replace(setting.config.data, split_seed=split_seed))
    prepared = prepare(config)
    content = to_dict(config)
    content = {name: content[name] for name in ("relations", "evaluation", "seed")} | {
        "version": VERSION,
        # Untrained heads depend on no loss and no optimiser.
        "learned": prepared.fingerprint if setting.trained else _start_key(config, prepared),
        "init": config.model.init,
        "temperature": config.model.temperature,
        "words": hashlib.sha256(prepared.word_vectors.tobytes()).hexdigest(),
        "knowledge": [
            hashlib.sha256(source.rows.tobytes()).hexdigest()
            for source in prepared.knowledge.sources
        ],
        "trained": setting.trained,
        "shuffled": setting.shuffled,
        "every_row": setting.every_row,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    file = work / "results" / f"{split_name(split_seed)}-{key}.json"
    return Task(setting, config, prepared, file)


def _start_key(config: RunConfig, prepared: Prepared) -> str:
    model, manifest = config.model, prepared.manifest
    start = [model.num_clusters, model.projection, model.max_points_per_centroid, config.seed]
    content = [manifest.fingerprint, to_dict(config)["backbone"], start, prepared.trained.tolist()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def fill_cache(
    config: RunConfig, prepared: Prepared, say: Callable[[str], None]
) -> tuple[FeatureSpec, Path]:
    """Compute what the feature cache lacks, in this process; returns its spec and folder."""
    manifest = prepared.manifest
    spec = feature_spec(config.backbone, cpu_precision(config.backbone.precision))
    folder = Path(cache_folder(prepared.cache, manifest, spec))
    units = {unit.file: unit.whole for unit in units_of(manifest, SPLITS)}
    missing = [unit for file, unit in units.items() if not (folder / file).is_file()]
    started = time.monotonic()
    for number, unit in enumerate(missing, 1):
        url, access = absolute(manifest.url), access_of(config.data)
        compute_unit(url, unit, spec, str(folder), "cpu", access)
        left = (time.monotonic() - started) / number * (len(missing) - number)
        say(f"features {number}/{len(missing)}, about {left:.0f} s left")
    return spec, folder


def run(task: Task, work: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Compute a task's result and store it.

    Returns:
        `clusters`: measures as in evaluation.json; `rows`: row -> {label, group, results}, where
        results are model -> figures in 0..1; `chance`; `seconds`.
    """
    started = time.monotonic()
    config, prepared = task.config, task.prepared
    spec, folder = fill_cache(config, prepared, say)
    start = work / "starts" / _start_key(config, prepared)
    job = training_job(config, prepared, spec, folder, start)
    _start(job, prepared, start)
    embedded = _embed(job, _train(task, job, work), prepared)
    evaluation = _evaluate(task, embedded)
    evaluation["clusters"] = cluster_measures(prepared, embedded, config.model.num_clusters)
    return store(task, evaluation, time.monotonic() - started)


def store(task: Task, evaluation: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Keep what the page needs of an evaluation as a task's result."""
    result = {
        "clusters": evaluation["clusters"],
        "chance": evaluation["chance"],
        "rows": {
            row["name"]: {
                "label": row["label"],
                "group": row["group"],
                "results": {
                    model: {name: figures[name] for name in KEPT}
                    for model, figures in row["results"].items()
                },
            }
            for row in evaluation["rows"]
        },
        "seconds": seconds,
    }
    write_json(task.file, result)
    return result


def _start(job: TrainingJob, prepared: Prepared, start: Path) -> None:
    """k-means into `<start>/init`, unless it is there."""
    if (start / "init" / "centroids.npy").is_file():
        return
    make_start(
        job.folder,
        units_of(prepared.manifest, ["train"]),
        job.classes,
        job.config,
        num_patches=prepared.manifest.num_patches,
        below=job.spec.sample_below,
        init=start / "init",
    )


def _train(task: Task, job: TrainingJob, work: Path) -> Any:
    """The head of the trained model, or as it starts."""
    if not task.setting.trained:
        return build_model(job).head
    if task.setting.shuffled:
        units = units_of(task.prepared.manifest, ["train"])
        lie = work / "shuffled" / _start_key(task.config, task.prepared)
        if not all((lie / unit.file).is_file() for unit in units):
            shuffle_labels(job.folder, units, lie, job.config.seed)
        job = replace(job, folder=str(lie))
    return train_alone(job).head


def _embed(job: TrainingJob, head: Any, prepared: Prepared) -> Embedded:
    return embed_units(Encoder(job, head.eval()), units_of(prepared.manifest, SPLITS))


def _evaluate(task: Task, embedded: Embedded) -> dict[str, Any]:
    config, prepared = task.config, task.prepared
    own = own_embeddings(prepared, embedded).astype(np.float32)

    def make_rows(seed: int) -> list[Row]:
        rows = relation_rows(config.relations, seed, prepared.knowledge.words_alone)
        every = task.setting.every_row
        return [row for row in rows if every or row.name in ("smo", "oracle")]

    data = _zsl_data(prepared, embedded, own)
    words = prepared.word_vectors

    def choose(embeddings: NDArray[np.floating], seen: Indices) -> ChosenKnowledge:
        return choose_knowledge(
            *(prepared.knowledge, words, seen, embeddings, config.relations, config.seed)
        )

    return evaluate(
        *(data, make_rows, own, words, config.evaluation, config.seed), choose_knowledge=choose
    )


def _zsl_data(prepared: Prepared, embedded: Embedded, own: Any) -> ZslData:
    images = embedded.images
    classes = ClassEmbeddings(
        prepared.manifest.class_names,
        own,
        own,
        prepared.word_vectors.astype(np.float32),
        prepared.seen,
        prepared.unseen,
        prepared.val,
    )
    features = ImageFeatures(
        images.features,
        images.labels,
        np.array([SPLITS.index(name) for name in images.splits], np.uint8),
        images.keys,
        images.assignments.astype(np.float16),
    )
    return with_validation(zsl_data_of(classes, features))
