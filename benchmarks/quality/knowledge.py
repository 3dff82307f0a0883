"""What each source of knowledge and the ridge are worth: rows for the runs of a repeat, by which
relation they predict, and how near the choice on seen classes comes to the best on test."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vgse.config import EvaluationConfig, RelationConfig
from vgse.files import write_json
from vgse.formats import read_npz
from vgse.knowledge.sources import Knowledge, combine_blocks, source_blocks
from vgse.relations import CachedSolver
from vgse.relations.predict import ChosenKnowledge, choose_knowledge
from vgse.relations.select import select_relation
from vgse.run_folder import (
    read_config,
    read_image_features,
    read_knowledge,
    read_seed,
    zsl_data_of,
)
from vgse.zsl.data import Indices, with_validation
from vgse.zsl.rows import Blocks, Row, RowInputs
from vgse.zsl.table import evaluate

VERSION = 1  # of what a stored result means
GRID_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)  # of each further source beside the first
RIDGES = (1e-8, 0.01, 0.1, 0.3, 1.0)  # the paper's, and those among which the choice lies
GRID_MODELS = ["prototype"]  # of a grid's many rows, by the fastest model

Values = NDArray[np.float64]
Choose = Callable[[Knowledge, NDArray[np.floating], Indices], ChosenKnowledge]


@dataclass(frozen=True)
class Variant:
    """Knowledge and ridge of a relation; None for what is chosen on seen classes."""

    name: str
    label: str
    sources: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    ridge: float | None = None


def source_variants(names: Sequence[str]) -> list[Variant]:
    """Each source alone and together, and the ridge in steps with the first and with all."""
    every = tuple(range(len(names)))
    found = [
        Variant(
            "sources-" + "-".join(map(str, chosen)), " + ".join(names[i] for i in chosen), chosen
        )
        for size in range(1, len(names) + 1)
        for chosen in combinations(every, size)
    ]
    for chosen in dict.fromkeys([every[:1], every]):
        label = " + ".join(names[i] for i in chosen)
        found += [
            Variant(
                f"ridge-{len(chosen)}-{ridge:g}", f"{label}, ridge {ridge:g}", chosen, None, ridge
            )
            for ridge in RIDGES
        ]
    return found


def grid_variants(names: Sequence[str]) -> list[Variant]:
    """The grid of weights and ridges that the choice is compared with."""
    every = tuple(range(len(names)))
    beside = product(GRID_WEIGHTS, repeat=len(names) - 1)
    alone = [tuple(float(i == at) for i in every) for at in every[1:]]
    weightings = [(1.0, *others) for others in beside] + alone
    return [
        Variant(f"grid-{'-'.join(map('{:g}'.format, w))}-{ridge:g}", "", every, w, ridge)
        for w in weightings
        for ridge in RIDGES
    ]


@dataclass(frozen=True)
class RunResult:
    """Results of one run: accuracies are means of the models in 0..1."""

    sources: dict[str, dict[str, float]]  # variant -> zsl, harmonic_mean
    grid: dict[str, dict[str, float]]  # variant -> zsl on test, score on seen classes
    chosen: dict[str, Any]  # the same of the choice, with its weights and ridge


def evaluate_variants(run: Path, stored: Path) -> RunResult:
    """The results of a run, from `stored` where they are there already."""
    digest = json.loads((run / "stages.json").read_text())["relations"]["inputs"]
    if stored.is_file():
        content = json.loads(stored.read_text())
        if content.pop("of", None) == [VERSION, digest]:
            return RunResult(**content)
    result = _evaluate_variants(run)
    write_json(stored, {"of": [VERSION, digest], **vars(result)})
    return result


def _evaluate_variants(run: Path) -> RunResult:
    classes = read_npz(run / "class_embeddings.npz")
    data = with_validation(zsl_data_of(classes, read_image_features(run)))
    own, words = classes.own_embeddings, classes.word_vectors.astype(np.float64)
    whole, seed = read_knowledge(run, classes), read_seed(run)
    config = read_config(run, "evaluation", EvaluationConfig)
    relations = read_config(run, "relations", RelationConfig)
    names, solve = [source.name for source in whole.sources], CachedSolver()

    def rows_of(variants: Sequence[Variant]) -> Callable[[int], list[Row]]:
        def embed(variant: Variant, inputs: RowInputs) -> Blocks:
            own_seen = inputs.own[inputs.seen]
            chosen = known(variant, inputs.seen.tobytes(), own_seen.tobytes())
            vectors = chosen.vectors
            relation = solve(
                *(vectors[inputs.unseen], vectors[inputs.seen]),
                alpha=relations.alpha,
                ridge=chosen.ridge,
            )
            return [np.concatenate([own_seen, relation.weights @ own_seen])]

        rows = [Row(v.name, v.label, "ours", partial(embed, v)) for v in variants]
        return lambda seed: rows

    @cache
    def known(variant: Variant, seen: bytes, of_seen: bytes) -> ChosenKnowledge:
        classes_seen = np.frombuffer(seen, np.int64)
        embeddings = np.frombuffer(of_seen, np.float64).reshape(len(classes_seen), -1)
        knowledge = Knowledge(whole.class_names, [whole.sources[i] for i in variant.sources])
        if variant.weights is not None and variant.ridge is not None:
            blocks = source_blocks(knowledge, classes_seen)
            vectors = combine_blocks(blocks, variant.weights, classes_seen)
            return ChosenKnowledge(vectors, variant.ridge)
        ridge = relations.ridge if variant.ridge is None else variant.ridge
        settings = replace(relations, ridge=ridge)
        return choose_knowledge(knowledge, words, classes_seen, embeddings, settings, seed)

    def accuracies(variants: list[Variant], models: list[str]) -> dict[str, dict[str, float]]:
        settings = replace(config, models=models)
        table = evaluate(*(data, rows_of(variants), own, words, settings, seed))
        return {
            row["name"]: {
                measure: float(np.mean([result[measure] for result in row["results"].values()]))
                for measure in ("zsl", "harmonic_mean")
            }
            for row in table["rows"]
        }

    seen = np.sort(data.seen)
    of_seen = own[seen].astype(np.float64)
    every = Variant("chosen", "", tuple(range(len(names))))
    choice = known(every, seen.tobytes(), of_seen.tobytes())
    grid = grid_variants(names)
    on_test = accuracies([every, *grid], GRID_MODELS)
    blocks = [block[seen] for block in source_blocks(whole, seen)]
    for variant in grid:
        assert variant.weights is not None
        selection = select_relation(
            of_seen.astype(np.float32),
            blocks,
            weights=variant.weights,
            ridge=variant.ridge,
            alpha=relations.alpha,
            seed=seed,
        )
        on_test[variant.name]["score"] = selection.curve[0].score
    chosen: dict[str, Any] = dict(on_test.pop("chosen"))
    if choice.selection is not None:
        chosen |= {"weights": list(choice.selection.weights), "ridge": choice.ridge}
        chosen["criterion"] = choice.selection.criterion
    return RunResult(accuracies(source_variants(names), config.models), on_test, chosen)


def knowledge_section(names: Sequence[str], of_runs: Mapping[str, RunResult]) -> list[str]:
    """Two tables and a sentence: sources and ridge, and the choice beside the grid."""

    results = list(of_runs.values())

    def of(variant: str, measure: str = "zsl") -> Values:
        return np.array([100 * result.sources[variant][measure] for result in results])

    variants = source_variants(names)
    together = variants[len(variants) - len(RIDGES) * (1 + (len(names) > 1)) - 1].name
    lines = [
        "## Sources of knowledge, and the ridge",
        "",
        "VGSE-SMO by what its relation knows of names; T1 and H are means of the models. Weights "
        "and ridge are chosen on seen classes, in every fold anew, where no ridge is given. "
        f"Runs: {', '.join(of_runs)}.",
        "",
        "| knowledge | T1 | H | T1 minus all together |",
        "| --- | ---: | ---: | ---: |",
    ]
    for variant in variants:
        gap = of(variant.name) - of(together)
        cell = "" if variant.name == together else _with_error(gap)
        t1, h = (
            _with_deviation(of(variant.name)),
            _with_deviation(of(variant.name, "harmonic_mean")),
        )
        lines.append(f"| {variant.label} | {t1} | {h} | {cell} |")
    lines += [
        "",
        "## The choice beside a grid",
        "",
        f"The grid has {len(results[0].grid)} settings of weights and ridge; T1, mean of "
        f"{' and '.join(GRID_MODELS)}. The choice looks at seen classes; best and mean "
        "of the grid are those on test. ρ: Spearman's over the grid, of T1 and of what the choice "
        "maximises.",
        "",
        "| run | chosen weights, ridge | the choice | best of the grid | mean of the grid | ρ |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    rows = []
    for name, result in of_runs.items():
        t1 = np.array([100 * values["zsl"] for values in result.grid.values()])
        scores = [values["score"] for values in result.grid.values()]
        rho = float(stats.spearmanr(scores, t1).statistic)
        rows.append((100 * result.chosen["zsl"], t1.max(), t1.mean(), rho))
        weights = " : ".join(f"{weight:g}" for weight in result.chosen.get("weights", []))
        ridge = result.chosen.get("ridge", 0)
        lines.append(
            f"| {name} | {weights}, {ridge:g} | "
            + " | ".join(f"{value:.1f}" for value in rows[-1][:3])
            + f" | {rho:.2f} |"
        )
    choice, best, mean, _ = (np.array(column) for column in zip(*rows, strict=True))
    settings = list(results[0].grid)
    of_setting = np.array([[100 * r.grid[name]["zsl"] for name in settings] for r in results])
    lines += [
        "",
        "The choice, minus the best setting of each run, which knows the test: "
        f"{_with_error(choice - best)} points; minus the one setting that is best over all runs: "
        f"{_with_error(choice - of_setting[:, of_setting.mean(0).argmax()])}; minus the mean of "
        f"the grid: {_with_error(choice - mean)}.",
    ]
    return lines


def _with_deviation(values: Values) -> str:
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def _with_error(gap: Values) -> str:
    return f"{gap.mean():+.1f} ± {gap.std(ddof=1) / np.sqrt(len(gap)):.1f}"
