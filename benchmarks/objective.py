"""Which objective of a search ranks configurations as the test images do, on random ones.

    python -m benchmarks.objective --config configs/demo.yaml --work data/objective/demo
    python -m benchmarks.objective --page data/objective/demo data/objective/cifar100

Random configurations of the default search space (never the best ones) are trained twice on cached
features: as a trial, without the validation classes, and on all seen classes, as a finalist. What
each trial is scored by is compared with the test scores of its finalist by rank. Every training is
stored in --work, and an interrupted benchmark goes on.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from jsonargparse import ArgumentParser

from distributed.embedding.embed import Embedded, Encoder, embed_units
from distributed.embedding.results import own_embeddings
from distributed.features.cache import (
    FeatureSpec,
    access_of,
    cache_folder,
    feature_spec,
    read_unit,
    units_of,
)
from distributed.features.extract import compute_unit
from distributed.features.kmeans_init import make_start
from distributed.setup import Prepared, prepare
from distributed.storage import absolute
from distributed.train.ray_trainer import training_job
from distributed.train.trainer import train_alone
from shards.manifest import SPLITS
from tune.report.verdict import spearman
from tune.space import default_space, draw_params, with_params
from tune.trial.context import start_key
from tune.trial.objective import Problem, make_problem, own_images_accuracy, zero_shot_scores
from vgse.config import RunConfig
from vgse.embeddings import class_embeddings
from vgse.files import read_arrays, write_arrays, write_json
from vgse.health import nearest_class_mean
from vgse.images.devices import cpu_precision
from vgse.knowledge.sources import semantic_targets
from vgse.relations.predict import ChosenKnowledge, choose_knowledge
from vgse.zsl.data import ZslData
from vgse.zsl.rows import Row, table_rows
from vgse.zsl.table import evaluate

RESULTS = Path(__file__).parent / "results"
ROLES = ("train", "seen")  # training.classes of a trial, and of a finalist


def make_parser() -> ArgumentParser:
    """The command line; every field of the configuration can be set as --section.field."""
    parser = ArgumentParser(prog="python -m benchmarks.objective", allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of a run's configuration.")
    parser.add_argument("--work", type=Path, default=Path("data/objective"))
    parser.add_argument("--number", type=int, default=24, help="Random configurations.")
    parser.add_argument("--most", type=int, default=1000, help="Trainings, or scores, of a call.")
    parser.add_argument(
        "--once", action="store_true", help="Test the trials' own clusters: half of the trainings."
    )
    parser.add_argument("--semantic", action="store_true", help="Compare targets of L_sem.")
    parser.add_argument("--page", type=Path, nargs="*", help="Write the page of these folders.")
    parser.add_class_arguments(RunConfig, as_group=False, skip={"storage", "cluster", "tracking"})
    return parser


def random_params(config: RunConfig, number: int) -> list[dict[str, object]]:
    """The default configuration, and random ones of the default space but for α, which changes no
    training."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = default_space()
    drawn = [draw_params(study.ask(), config, space) for _ in range(number)]
    for params in drawn:
        del params["relations.alpha"]
    return [{}, *drawn]


def features_of(config: RunConfig, prepared: Prepared) -> tuple[FeatureSpec, str]:
    """The feature cache, filled in this process."""
    spec = feature_spec(config.backbone, cpu_precision(config.backbone.precision))
    folder = cache_folder(prepared.cache, prepared.manifest, spec)
    for unit in units_of(prepared.manifest, SPLITS):
        if not (Path(folder) / unit.file).is_file():
            access = access_of(config.data)
            compute_unit(absolute(prepared.manifest.url), unit, spec, folder, "cpu", access)
    return spec, folder


def train(config: RunConfig, prepared: Prepared, work: Path) -> Embedded:
    """The images as embedded by a head that was trained in this process."""
    spec, folder = features_of(config, prepared)
    start = work / "starts" / start_key(config, prepared.trained.tolist())
    units = units_of(prepared.manifest, ["train"])
    job = training_job(config, prepared, spec, folder, start)
    if not (start / "init" / "centroids.npy").is_file():
        make_start(
            *(folder, units, job.classes, config),
            num_patches=prepared.manifest.num_patches,
            below=spec.sample_below,
            init=start / "init",
        )
    training = replace(config.training, checkpoint_epochs=config.training.epochs)
    job = replace(job, config=replace(config, training=training))
    head = train_alone(job).head.eval()
    return embed_units(Encoder(job, head), units_of(prepared.manifest, SPLITS))


def measure(config: RunConfig, work: Path, number: int, most: int, roles: tuple[str, ...]) -> None:
    """Train what is not stored yet, and store class embeddings and assignments."""
    for index, params in enumerate(random_params(config, number)):
        for role in roles:
            path = work / f"{index:02d}-{role}.npz"
            if path.is_file() or most <= 0:
                continue
            most -= 1
            began = time.monotonic()
            drawn = with_params(config, {**params, "training.classes": role})
            prepared = prepare(drawn)
            embedded = train(drawn, prepared, work)
            write_arrays(
                path,
                {
                    "own": own_embeddings(prepared, embedded),
                    "assignments": embedded.images.assignments.astype(np.float16),
                },
            )
            write_json(work / f"{index:02d}.json", {"params": params})
            print(f"{path.name} {time.monotonic() - began:.0f} s", flush=True)


@dataclass(frozen=True)
class Images:
    """The images of a data set as zero-shot models get them, with their splits."""

    features: Any  # [M, D_f]
    labels: Any  # [M]
    splits: Any  # [M]

    def problem(self, config: RunConfig, prepared: Prepared) -> Problem:
        """What trials are scored on."""
        train = self.splits == "train"
        return make_problem(
            *(self.features[train], self.labels[train], prepared.manifest.class_names),
            *(np.setdiff1d(prepared.seen, prepared.val), prepared.val),
            holdout=config.evaluation.holdout,
            folds=config.evaluation.folds,
            seed=config.seed,
        )


def images_of(config: RunConfig, prepared: Prepared) -> Images:
    """All images from the cache, in the order in which they are embedded."""
    _, folder = features_of(config, prepared)
    units = units_of(prepared.manifest, SPLITS)
    contents = [read_unit(folder, unit, access_of(config.data)) for unit in units]
    return Images(
        np.concatenate([content.images.numpy() for content in contents]).astype(np.float32),
        np.concatenate([content.labels.numpy() for content in contents]),
        np.repeat([unit.split for unit in units], [len(c.labels) for c in contents]),
    )


def score(config: RunConfig, work: Path, number: int, most: int, roles: tuple[str, ...]) -> None:
    """Score what is trained and not scored yet: the trial by every objective, the finalist on the
    test images; as `NN-scores.json`."""
    prepared = prepare(config)
    images = images_of(config, prepared)
    problem, in_training = images.problem(config, prepared), images.splits == "train"
    data = ZslData(
        *(images.features, images.labels),
        *(np.flatnonzero(images.splits == name) for name in SPLITS),
        *(prepared.manifest.class_names, prepared.seen, prepared.unseen, prepared.val),
    )
    for index, params in enumerate(random_params(config, number)):
        path, files = (
            work / f"{index:02d}-scores.json",
            [work / f"{index:02d}-{role}.npz" for role in roles],
        )
        if path.is_file() or most <= 0 or not all(file.is_file() for file in files):
            continue
        most -= 1
        drawn = with_params(config, params)
        trial, finalist = read_arrays(files[0]), read_arrays(files[-1])
        found = scores_of_trial(problem, trial, in_training, prepared, drawn)
        found |= test_scores(data, finalist["own"], prepared, drawn)
        write_json(path, {"params": params} | found)
        print(path.name, found, flush=True)


def scores_of_trial(
    problem: Problem, trial: dict[str, Any], in_training: Any, prepared: Prepared, config: RunConfig
) -> dict[str, float]:
    """All that an objective can be made from; `one fold` holds the validation classes alone."""
    found = {"own_images": own_images_accuracy(problem, trial["assignments"][in_training])}
    given = trial["own"], prepared.word_vectors, prepared.knowledge, config.relations, "auto"
    one = replace(problem, folds=problem.folds[:1], features=problem.features[:1])
    for name, part in (("", problem), (" one fold", one)):
        scores = zero_shot_scores(part, *given, ["prototype"])
        found |= {f"{key}{name}": value for key, value in scores.items()}
    return found


def semantic(config: RunConfig, work: Path, most: int) -> None:
    """Words alone against all knowledge as what L_sem regresses, on five sets of validation classes
    that clusters do not learn from; as `semantic-N-TARGET.json`."""
    prepared = prepare(config)
    images = images_of(config, prepared)
    folds = images.problem(config, prepared).folds
    for number, fold in enumerate(folds):
        for target in ("words", "knowledge"):
            path = work / f"semantic-{number}-{target}.json"
            if path.is_file() or most <= 0:
                continue
            most -= 1
            drawn = with_params(config, {"loss.semantic_target": target})
            given = prepared.knowledge, prepared.word_vectors, fold.seen, target
            turn = replace(
                prepared, val=fold.unseen, trained=fold.seen, targets=semantic_targets(*given)
            )
            embedded = train(drawn, turn, work)
            trial = {
                "own": class_embeddings(embedded.sums["train"]),
                "assignments": embedded.images.assignments,
            }
            problem, in_training = images.problem(drawn, turn), images.splits == "train"
            found = scores_of_trial(problem, trial, in_training, prepared, drawn)
            held = images.splits == "test_seen"
            found["nearest_class_mean"] = nearest_class_mean(
                *(trial["assignments"][held], images.labels[held], trial["own"], fold.seen)
            )
            write_json(path, found)
            print(path.name, found, flush=True)


def test_scores(data: ZslData, own: Any, prepared: Prepared, config: RunConfig) -> dict[str, float]:
    """T1, H and AUSUC of VGSE-SMO on the test images, means of ESZSL and prototype."""

    def choose(embeddings: Any, seen: Any) -> ChosenKnowledge:
        given = prepared.knowledge, prepared.word_vectors, seen, embeddings
        return choose_knowledge(*given, config.relations, config.seed)

    def rows(seed: int) -> list[Row]:
        found = table_rows(config.relations, seed, words_alone=prepared.knowledge.words_alone)
        return [row for row in found if row.name == "smo"]

    evaluation = replace(config.evaluation, models=["eszsl", "prototype"])
    table = evaluate(
        *(data, rows, own.astype(np.float32), prepared.word_vectors, evaluation, 0),
        choose_knowledge=choose,
    )
    results = table["rows"][0]["results"]
    measures = {"zsl": "T1", "harmonic_mean": "H", "ausuc": "AUSUC"}
    return {
        f"test {name}": float(np.mean([result[measure] for result in results.values()]))
        for measure, name in measures.items()
    } | {f"test T1 {model}": result["zsl"] for model, result in results.items()}


OBJECTIVES = {
    "own images": ("own_images",),
    "T1 through the relation, five folds": ("zsl",),
    "T1 through the relation, one fold (the validation classes)": ("zsl one fold",),
    "H through the relation, five folds": ("harmonic_mean",),
    "H through the relation, one fold": ("harmonic_mean one fold",),
    "mean of own images and T1, five folds": ("own_images", "zsl"),
    "mean of own images and H, five folds": ("own_images", "harmonic_mean"),
}
TESTS = ("test T1", "test H", "test AUSUC")


def page(folders: Sequence[Path]) -> str:
    """The page of stored scores."""
    lines = [
        "# What a search should be judged by",
        "",
        "By `python -m benchmarks.objective`. Random configurations of the default search space "
        "(D_v, τ, the loss weights, the learning rate), never the best ones, and the default. "
        "Each is trained as a trial, without the validation classes, and scored by every "
        "objective; test images are those of the unseen classes, VGSE-SMO with the chosen "
        "knowledge, means of ESZSL and prototype. Spearman's ρ over the configurations, with the "
        "share of random orders that reach it in brackets.",
    ]
    for folder in folders:
        rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*-scores.json"))]
        once = not (folder / "00-seen.npz").is_file()
        own = "the trials' own clusters" if once else "a training on all seen classes"
        lines += ["", f"## {folder.name}: {len(rows)} configurations, tested with {own}", ""]
        spread = {name: [100 * row[name] for row in rows] for name in ("own_images", "zsl", *TESTS)}
        lines += ["| | mean | deviation | least | most |", "| --- | ---: | ---: | ---: | ---: |"]
        for name, values in spread.items():
            numbers = np.mean(values), np.std(values), min(values), max(values)
            cells = " | ".join(f"{value:.1f}" for value in numbers)
            lines.append(f"| {name.replace('_', ' ')} | {cells} |")
        lines += _ranks(rows, rows[0], "All")
        sound = [row for row in rows if row["own_images"] >= _SOUND * rows[0]["own_images"]]
        lines += _ranks(
            sound,
            rows[0],
            f"Without those whose own images are below {_SOUND:.0%} of the default's",
        )
        lines += _semantic_lines(folder)
    return "\n".join(lines) + "\n"


_SOUND = 0.6  # as a share of the default's: below, clusters have died or training diverged


def _ranks(rows: list[dict[str, Any]], default: dict[str, Any], which: str) -> list[str]:
    """A table of Spearman's rho of every objective with every test score."""
    heads = [*TESTS, "winner's T1 − default's", "winner's H − default's"]
    lines = [
        "",
        f"{which}: {len(rows)} configurations.",
        "",
        f"| objective | {' | '.join(heads)} |",
    ]
    lines.append("| --- |" + " ---: |" * len(heads))
    for name, parts in OBJECTIVES.items():
        scores = [float(np.mean([row[part] for part in parts])) for row in rows]
        found = [spearman(scores, [row[test] for row in rows]) for test in TESTS]
        cells = " | ".join(f"{rho:.2f} ({chance:.3f})" for rho, chance in found)
        winner = rows[int(np.argmax(scores))]
        gains = (100 * (winner[test] - default[test]) for test in TESTS[:2])
        cells += "".join(f" | {gain:+.1f}" for gain in gains)
        lines.append(f"| {name} | {cells} |")
    return lines


def _semantic_lines(folder: Path) -> list[str]:
    """Words alone against all knowledge as what L_sem regresses, paired by fold."""
    found = {
        target: [
            json.loads(path.read_text())
            for path in sorted(folder.glob(f"semantic-*-{target}.json"))
        ]
        for target in ("words", "knowledge")
    }
    number = min(map(len, found.values()))
    if not number:
        return []
    lines = [
        "",
        f"What L_sem regresses, {number} sets of validation classes, percent (difference: mean "
        "and standard error of pairs):",
        "",
        "| | words | knowledge | difference |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in ("own_images", "zsl", "harmonic_mean", "nearest_class_mean"):
        pairs = [[100 * row[name] for row in found[target][:number]] for target in found]
        difference = np.subtract(pairs[1], pairs[0])
        error = difference.std(ddof=1) / np.sqrt(number) if number > 1 else np.nan
        lines.append(
            f"| {name.replace('_', ' ')} | {np.mean(pairs[0]):.1f} | {np.mean(pairs[1]):.1f} | "
            f"{difference.mean():+.1f} ± {error:.1f} |"
        )
    return lines


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = make_parser().parse_args()
    if options.page:
        (RESULTS / "objective.md").write_text(page(options.page))
        sys.exit()
    given = vars(make_parser().instantiate(options))
    for name in ("page", "number", "work", "config", "most", "semantic", "once"):
        given.pop(name, None)
    options.work.mkdir(parents=True, exist_ok=True)
    arguments = RunConfig(**given), options.work.absolute(), options.number, options.most
    if options.semantic:
        semantic(arguments[0], arguments[1], options.most)
    else:
        roles = ROLES[:1] if options.once else ROLES
        measure(*arguments, roles)
        score(*arguments, roles)
