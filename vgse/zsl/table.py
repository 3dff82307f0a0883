"""The zero-shot table: every choice on validation classes, then every row on the test images."""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from csv import writer
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vgse.config import EvaluationConfig
from vgse.errors import UserError
from vgse.files import written_whole
from vgse.relations import CachedSolver, Relations
from vgse.relations.predict import ChosenKnowledge
from vgse.zsl.data import Indices, ZslData
from vgse.zsl.folds import (
    Fold,
    PreparedFold,
    TestGuard,
    class_means,
    prepare,
    validation_folds,
)
from vgse.zsl.hyperparameters import Choice, Predictions, choose, final_result
from vgse.zsl.models import Model, find_model
from vgse.zsl.models.bilinear import Embeddings
from vgse.zsl.rows import Blocks, Row, RowInputs, assembled
from vgse.zsl.summary import summary_sentence

_SEEDED_ROWS = ("random", "permuted")
_MOST_THREADS = 8


@dataclass(frozen=True)
class Predicted:
    """Seen classes as predicted, each when it is its turn to be unseen."""

    embeddings: NDArray[np.floating]  # [C, D_e], NaN for other classes
    turns: list[Indices]  # the classes that are unseen in each fold


def evaluate(
    data: ZslData,
    make_rows: Callable[[int], list[Row]],
    own: NDArray[np.floating],
    words: NDArray[np.floating] | None,
    config: EvaluationConfig,
    seed: int,
    *,
    num_seeds: int = 1,
    solve: Callable[..., Relations] | None = None,
    choose_knowledge: Callable[[NDArray[np.floating], Indices], ChosenKnowledge] | None = None,
    predicted: Predicted | None = None,
    csv: Path | None = None,
) -> dict[str, Any]:
    """The contents of evaluation.json, without its keys `clusters` and `relations`.

    Args:
        data: features, labels and splits; `data.val` must name some seen classes.
        make_rows: the rows by seed, such as `partial(table_rows, relations)`.
        own: [C, D_v], every class from its own images, or embeddings from elsewhere.
        words: [C, D_w], centred and at unit length, where rows need them.
        config: models, normalisation and the share held out.
        seed: seed of random rows, permutations, held-out images and stochastic models.
        num_seeds: repetitions of whatever is random, with seeds `seed`, `seed + 1`, …; above 1
            each result is a mean and holds `std`, its standard deviation over the seeds.
        solve: `solve_relations`, or a `CachedSolver` that is shared with others.
        choose_knowledge: Φ_seen [S, D_v] and the seen classes [S] of a fold -> what is known of
            all names, chosen on them, where rows need it.
        predicted: `own` of seen classes as they are predicted in the folds, where they are known.
        csv: folder that gets predictions.csv and per_class.csv, see `write_csv`.
    """
    for name, array in (("class embeddings", own), ("word vectors", words)):
        if array is not None and (array.ndim != 2 or len(array) != len(data.class_names)):
            raise UserError(
                f"{name} have the shape {array.shape}, but there are {len(data.class_names)} "
                "classes: give one row a class, in the order of the class names"
            )
    rows = make_rows(seed)
    models = [find_model(name) for name in config.models]
    if not models:
        raise UserError("evaluation.models is empty: name at least one, such as eszsl")
    guard = TestGuard(data)
    solve = solve or CachedSolver()  # most rows ask for the same relation

    inputs_of = partial(_inputs, data, own, words, solve, choose_knowledge)
    turns = None if predicted is None else predicted.turns
    folds = validation_folds(data, config.holdout, seed, config.folds, turns=turns)
    with _one_thread_each() as pool:
        prepared = list(pool.map(partial(prepare, data), folds))
        inputs = list(pool.map(inputs_of, folds))
        if predicted is not None:
            inputs = [_with_predicted(each, predicted.embeddings) for each in inputs]
        blocks = {
            row.name: [_blocks(row, each, data.class_names) for each in inputs] for row in rows
        }

        def choose_for(pair: tuple[Row, Model]) -> Choice:
            row, model = pair

            def embeddings(number: int, normalise: str) -> Embeddings:
                fold = prepared[number]
                return assembled(blocks[row.name][number], fold.num_seen, normalise)

            return choose(model, prepared, embeddings, config.normalise, seed)

        pairs = list(product(rows, models))
        found = zip(pairs, pool.map(choose_for, pairs), strict=True)
        choices = {(row.name, model.name): choice for (row, model), choice in found}
        guard.note(
            f"{len(choices)} choices of hyper-parameters on {len(folds)} folds of the seen classes"
        )

        prepared.clear()  # as large as the images, for each fold
        fold = guard.open("final table")
        final = prepare(data, fold)
        of_final = inputs_of(fold)

        of_rows = [
            [
                _blocks(make_rows(seed + i)[index], of_final, data.class_names)
                for i in range(num_seeds if row.name in _SEEDED_ROWS else 1)
            ]
            for index, row in enumerate(rows)
        ]

        kept: dict[tuple[str, str], Predictions] = {}

        def entry(row: Row, blocks: list[Blocks]) -> dict[str, Any]:
            results = {}
            for model in models:
                at = row.name, model.name
                keep = None if csv is None else partial(kept.setdefault, at)  # the first seed's
                results[model.name] = _result(
                    *(model, final, blocks, choices[at], seed, num_seeds), keep
                )
            return {
                "name": row.name,
                "label": row.label,
                "group": row.group,
                "dimension": sum(block.shape[1] for block in blocks[0]),
                "results": results,
            }

        entries = list(pool.map(entry, rows, of_rows))
    if csv is not None:
        write_csv(csv, data, fold, {at: kept[at] for at in choices})
    evaluation: dict[str, Any] = {
        "version": 1,
        "chance": 1 / len(fold.unseen),
        "models": list(config.models),
        "rows": entries,
        "protocol": {
            "normalise": config.normalise,
            "holdout": config.holdout,
            "folds": [[data.class_names[c] for c in fold.unseen] for fold in folds],
            "validation_classes": [data.class_names[c] for c in np.sort(data.val)],
            "num_seeds": num_seeds,
        },
        "test_opened": guard.log,
    }
    return evaluation | {"summary": summary_sentence(evaluation)}


def write_csv(
    folder: Path, data: ZslData, fold: Fold, found: dict[tuple[str, str], Predictions]
) -> None:
    """Writes predictions.csv (a line an image, row and model) and per_class.csv.

    `image` counts the rows of the features from 0; zsl is among unseen classes, gzsl among all,
    with gamma. Accuracies are shares in 0..1.
    """
    columns = np.concatenate([fold.seen, fold.unseen])
    names = np.array(data.class_names)
    images = np.concatenate([fold.test_seen, fold.test_unseen])
    labels, is_seen = data.labels[images], np.arange(len(images)) < len(fold.test_seen)
    lines: list[list[Any]] = [["row", "model", "image", "class", "role", "zsl", "gzsl"]]
    shares: list[list[Any]] = [["row", "model", "class", "role", "images", "zsl", "gzsl"]]
    roles = np.where(is_seen, "seen", "unseen")
    for at, predictions in found.items():
        gzsl = columns[np.concatenate([predictions.of_seen, predictions.of_unseen])]
        zsl = np.concatenate([np.full(is_seen.sum(), -1), columns[predictions.zsl]])
        among = np.where(is_seen, "", names[zsl])
        rows = zip(images, names[labels], roles, among, names[gzsl], strict=True)
        lines += [[*at, *row] for row in rows]
        for c in columns:
            of_class = labels == c
            if of_class.any():
                own = [float((p[of_class] == c).mean()) for p in (zsl, gzsl)]
                role = "unseen" if c in fold.unseen else "seen"
                first = own[0] if role == "unseen" else ""
                shares.append([*at, names[c], role, of_class.sum(), first, own[1]])
    for name, table in (("predictions.csv", lines), ("per_class.csv", shares)):
        text = io.StringIO()
        writer(text, lineterminator="\n").writerows(table)
        with written_whole(folder / name) as stream:
            stream.write(text.getvalue().encode())


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Threads for many small problems, a core each: BLAS would share each of them out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with threadpool_limits(1), ThreadPoolExecutor(min(cores or 1, _MOST_THREADS)) as pool:
        yield pool


def _inputs(
    data: ZslData,
    own: NDArray[np.floating],
    words: NDArray[np.floating] | None,
    solve: Callable[..., Relations],
    choose_knowledge: Callable[..., ChosenKnowledge] | None,
    fold: Fold,
) -> RowInputs:
    """What rows may look at in `fold`: classes outside of it are NaN."""
    images = np.concatenate([fold.train, fold.test_unseen])
    inside = np.isin(np.arange(len(data.class_names)), np.union1d(fold.seen, fold.unseen))[:, None]
    return RowInputs(
        fold.seen,
        fold.unseen,
        np.where(inside, np.asarray(own, np.float64), np.nan),
        None if words is None else np.where(inside, np.asarray(words, np.float64), np.nan),
        class_means(data.features, data.labels, images, len(data.class_names)),
        solve,
        None if choose_knowledge is None else choose_knowledge(own[fold.seen], fold.seen),
    )


def _with_predicted(inputs: RowInputs, predicted: NDArray[np.floating]) -> RowInputs:
    own = inputs.own.copy()
    own[inputs.unseen] = predicted[inputs.unseen]
    return replace(inputs, own=own)


def _blocks(row: Row, inputs: RowInputs, class_names: list[str]) -> Blocks:
    blocks = row.embed(inputs)
    bad = ~np.isfinite(np.concatenate(blocks, axis=1)).all(axis=1)
    if bad.any():
        missing = np.concatenate([inputs.seen, inputs.unseen])[bad]
        names = ", ".join(class_names[c] for c in missing[:5])
        raise UserError(
            f"row {row.name!r}: no finite embedding for {names}: "
            "give these classes images and word vectors, or leave them out"
        )
    return blocks


def _result(
    model: Model,
    fold: PreparedFold,
    blocks: list[Blocks],
    choice: Choice,
    seed: int,
    num_seeds: int,
    keep: Callable[[Predictions], object] | None,
) -> dict[str, Any]:
    """One cell of evaluation.json; repeats over seeds where the row or the model is random."""
    repeats = num_seeds if model.stochastic or len(blocks) > 1 else 1
    embeddings = [assembled(each, fold.num_seen, choice.normalise) for each in blocks]
    found = [
        final_result(model, fold, embeddings[i % len(embeddings)], choice, seed + i, keep)
        for i in range(repeats)
    ]
    runs, curve = [asdict(result) for result, _ in found], found[0][1]
    result: dict[str, Any] = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    if num_seeds > 1:
        result["std"] = {key: float(np.std([run[key] for run in runs])) for key in runs[0]}
    return result | {
        "params": choice.params,
        "normalise": choice.normalise,
        "val_zsl": choice.val_zsl,
        "val_harmonic_mean": choice.val_harmonic_mean,
        "curve": [[round(share, 4) for share in point] for point in curve],
    }
