"""The zero-shot table: every choice on validation classes, then every row on the test images."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgse.config import EvaluationConfig
from vgse.errors import UserError
from vgse.relations import CachedSolver, Relations
from vgse.relations.predict import ChosenKnowledge
from vgse.zsl.data import Indices, ZslData
from vgse.zsl.folds import Fold, PreparedFold, TestGuard, class_means, prepare, validation_fold
from vgse.zsl.hyperparameters import Choice, choose, final_result
from vgse.zsl.models import Model, find_model
from vgse.zsl.models.bilinear import Embeddings
from vgse.zsl.rows import Row, RowInputs, assembled
from vgse.zsl.summary import summary_sentence

_SEEDED_ROWS = ("random", "permuted")


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

    def embeddings_in(fold: Fold) -> Callable[[Row], Embeddings]:
        inputs = _inputs(data, fold, own, words, solve, choose_knowledge)
        return lambda row: _embeddings(row, inputs, data.class_names, config.normalise)

    fold = validation_fold(data, config.holdout, seed)
    prepared, embed = prepare(data, fold), embeddings_in(fold)
    choices = {}
    for row in rows:
        embedded = embed(row)
        for model in models:
            choices[row.name, model.name] = choose(model, prepared, embedded, seed)
    guard.note(
        f"{len(choices)} choices of hyper-parameters on {len(fold.unseen)} validation classes"
    )

    fold = guard.open("final table")
    prepared, embed = prepare(data, fold), embeddings_in(fold)
    entries = []
    for index, row in enumerate(rows):
        repeats = num_seeds if row.name in _SEEDED_ROWS else 1
        embeddings = [embed(make_rows(seed + i)[index]) for i in range(repeats)]
        results = {
            model.name: _result(
                model, prepared, embeddings, choices[row.name, model.name], seed, num_seeds
            )
            for model in models
        }
        entries.append(
            {
                "name": row.name,
                "label": row.label,
                "group": row.group,
                "dimension": embeddings[0].shape[1],
                "results": results,
            }
        )
    evaluation: dict[str, Any] = {
        "version": 1,
        "chance": 1 / len(fold.unseen),
        "models": list(config.models),
        "rows": entries,
        "protocol": {
            "normalise": config.normalise,
            "holdout": config.holdout,
            "validation_classes": [data.class_names[c] for c in np.sort(data.val)],
            "num_seeds": num_seeds,
        },
        "test_opened": guard.log,
    }
    return evaluation | {"summary": summary_sentence(evaluation)}


def _inputs(
    data: ZslData,
    fold: Fold,
    own: NDArray[np.floating],
    words: NDArray[np.floating] | None,
    solve: Callable[..., Relations],
    choose_knowledge: Callable[[NDArray[np.floating], Indices], ChosenKnowledge] | None,
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


def _embeddings(row: Row, inputs: RowInputs, class_names: list[str], normalise: str) -> Embeddings:
    blocks = row.embed(inputs)
    bad = ~np.isfinite(np.concatenate(blocks, axis=1)).all(axis=1)
    if bad.any():
        missing = np.concatenate([inputs.seen, inputs.unseen])[bad]
        names = ", ".join(class_names[c] for c in missing[:5])
        raise UserError(
            f"row {row.name!r}: no finite embedding for {names}: "
            "give these classes images and word vectors, or leave them out"
        )
    return assembled(blocks, len(inputs.seen), normalise)


def _result(
    model: Model,
    fold: PreparedFold,
    embeddings: list[Embeddings],
    choice: Choice,
    seed: int,
    num_seeds: int,
) -> dict[str, Any]:
    """One cell of evaluation.json; repeats over seeds where the row or the model is random."""
    repeats = num_seeds if model.stochastic or len(embeddings) > 1 else 1
    runs = [
        asdict(final_result(model, fold, embeddings[i % len(embeddings)], choice, seed + i))
        for i in range(repeats)
    ]
    result: dict[str, Any] = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    if num_seeds > 1:
        result["std"] = {key: float(np.std([run[key] for run in runs])) for key in runs[0]}
    return result | {
        "params": choice.params,
        "val_zsl": choice.val_zsl,
        "val_harmonic_mean": choice.val_harmonic_mean,
    }
