"""What a trial is judged by: validation classes, which took no part in its training.

`own_images` is what its clusters carry over to classes that they never saw: the accuracy of the
validation classes' images under the nearest mean of a_n, the means being of these images.

`zsl`, `seen`, `unseen` and `harmonic_mean` go through the relation: class-wise folds of the seen
classes take turns as unseen, the validation classes first, and each is predicted by the relation
that its other seen classes choose, from their image features: all trials are judged by the same
knowledge. The clusters have learned from the classes of the further folds; r Φ holds little of a
class that they learned from, and more folds say much more about r. What a zero-shot model needs,
and gamma of calibrated stacking, is chosen for each fold by the others: chosen on itself, it would
flatter every trial by what a grid gains there.

All images are training images, and no unseen class takes part.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from distributed.requirements import zero_shot_stand_in
from distributed.setup import Prepared
from tune.config import SearchConfig
from vgse.config import RelationConfig
from vgse.errors import UserError
from vgse.health import own_class_mean
from vgse.knowledge.sources import Knowledge
from vgse.knowledge.sparse_rows import table_arrays
from vgse.relations import CachedSolver
from vgse.relations.predict import ChosenKnowledge, choose_knowledge
from vgse.zsl.data import Features, Indices
from vgse.zsl.folds import Fold, PreparedFold, class_folds, class_means, class_turns, prepare_images
from vgse.zsl.hyperparameters import cross_validate
from vgse.zsl.models import find_model
from vgse.zsl.models.bilinear import Embeddings
from vgse.zsl.rows import RowInputs, assembled, smo_row

_CHOSEN_BY = 200
_MOST_CHOICES = 100
ZERO_SHOT = ("zsl", "seen", "unseen", "harmonic_mean")
MEASURES = ("own_images", *ZERO_SHOT)


@dataclass(frozen=True)
class Problem:
    """Zero-shot problems within the training images, with features as models get them."""

    labels: Indices  # [M] of the training images
    val: Indices  # classes that no trial trains on
    folds: list[Fold]  # the validation classes are unseen in the first
    features: list[PreparedFold]
    means: NDArray[np.float64]  # [C, D_f] image features of the seen classes
    seed: int
    solve: CachedSolver = field(default_factory=CachedSolver)  # relations stay over the epochs


def make_problem(
    features: Features,
    labels: Indices,
    class_names: list[str],
    trained: Indices,
    val: Indices,
    *,
    holdout: float,
    folds: int,
    seed: int,
) -> Problem:
    """The problem that all trials of a search are scored on.

    Of features [M, D_f] and labels [M] of training images, those of the classes `val` among them;
    `holdout` is the share of each seen class's images that plays test_seen, in at most `folds`
    folds.
    """
    if len(trained) < 4:
        raise UserError(
            f"{len(trained)} training classes besides {len(val)} validation classes; a search "
            "needs at least 4: pack again with fewer validation classes"
        )
    if not len(val):
        raise UserError(f"no validation class among {len(class_names)}; a search needs some")
    seen = np.union1d(trained, val)
    images = np.flatnonzero(np.isin(labels, seen))
    turns = class_turns(seen, val, seed, folds)
    found = class_folds(labels, images, seen, turns, holdout=holdout, seed=seed)
    prepared = [prepare_images(features, labels, fold) for fold in found]
    means = class_means(features, labels, images, len(class_names))
    return Problem(labels, np.sort(val), found, prepared, means, seed)


def own_images_accuracy(problem: Problem, assignments: NDArray[np.floating]) -> float:
    """Per-class mean accuracy of the validation classes under clusters from their own images, in
    0..1; `assignments` [M, D_v] are a_n of the training images."""
    return own_class_mean(assignments, problem.labels, problem.val)


def check_objective(config: SearchConfig, prepared: Prepared) -> None:
    """UserError where the objective could not be had, or would be the same for all trials."""
    where, val = prepared.manifest.url, len(prepared.val)
    if val < 2 and not {"zsl", "own_images"}.isdisjoint(config.objective.split("+")):
        raise UserError(
            f"{where}: {val} validation class, among which every trial is right: objective "
            f"{config.objective} needs at least 2 validation classes; pack again with more, or "
            "take another objective"
        )
    data = zero_shot_stand_in(prepared)
    try:
        make_problem(
            *(data.features[data.train], data.labels[data.train], data.class_names),
            *(prepared.trained, prepared.val),
            holdout=config.run.evaluation.holdout,
            folds=config.run.evaluation.folds,
            seed=config.run.seed,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def zero_shot_scores(
    problem: Problem,
    own: NDArray[np.float64],
    word_vectors: NDArray[np.float64],
    knowledge: Knowledge,
    relations: RelationConfig,
    normalise: str,
    models: Sequence[str],
) -> dict[str, float]:
    """ZERO_SHOT of class embeddings in 0..1, means over the folds and the zero-shot models.

    `own` [C, D_v] are embeddings of the seen classes; other rows are not looked at.
    """

    def blocks(fold: Fold) -> list[Embeddings]:
        known = np.full_like(own, np.nan)
        known[fold.seen] = own[fold.seen]
        chosen = _chosen(problem, fold, word_vectors, knowledge, relations)
        inputs = RowInputs(fold.seen, fold.unseen, known, solve=problem.solve, chosen=chosen)
        return smo_row(inputs, relations.alpha)

    of_folds = [blocks(fold) for fold in problem.folds]

    def embeddings(number: int, normalise: str) -> Embeddings:
        return assembled(of_folds[number], problem.features[number].num_seen, normalise)

    results = []
    for model in map(find_model, models):
        zsl, stacked = cross_validate(model, problem.features, embeddings, normalise, problem.seed)
        results.append((zsl, stacked.seen, stacked.unseen, stacked.harmonic_mean))
    return dict(zip(ZERO_SHOT, np.mean(results, axis=0).tolist(), strict=True))


_CHOICES: dict[bytes, ChosenKnowledge] = {}  # of this process, which serves many trials


def _chosen(
    problem: Problem,
    fold: Fold,
    word_vectors: NDArray[np.float64],
    knowledge: Knowledge,
    relations: RelationConfig,
) -> ChosenKnowledge:
    """Knowledge and ridge of a fold, by its own seen classes, of which at most 200 take part.

    At alpha = 0 for every trial: below, a choice takes ten times as long.
    """
    of_seen, relations = problem.means[fold.seen], replace(relations, alpha=0.0)
    content = hashlib.sha256(repr((relations, problem.seed)).encode())
    tables = [table_arrays(source.rows, "rows") for source in knowledge.sources]
    parts = [array for table in tables for array in table.values()]
    for array in (fold.seen, of_seen, word_vectors, *parts):
        content.update(np.ascontiguousarray(array).tobytes())
    key = content.digest()
    if key not in _CHOICES:
        if len(_CHOICES) >= _MOST_CHOICES:
            _CHOICES.clear()
        given = knowledge, word_vectors, fold.seen, of_seen, relations, problem.seed
        _CHOICES[key] = choose_knowledge(*given, max_classes=_CHOSEN_BY)
    return _CHOICES[key]
