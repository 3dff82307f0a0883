"""What a trial is judged by: zero-shot accuracy on validation classes that play the unseen ones.

All images are training images; validation classes took no part in training. The zero-shot model's
own hyper-parameters, and gamma of calibrated stacking, are chosen one level further down, on a
seeded fifth of the training classes that plays unseen in its turn: chosen on the validation
classes, they would flatter every trial by what a grid gains there. Accuracy on seen classes is of
images that the zero-shot model did not learn from; the clusters did.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vgse.config import RelationConfig
from vgse.errors import UserError
from vgse.knowledge.sources import Knowledge
from vgse.relations import CachedSolver
from vgse.relations.predict import choose_knowledge
from vgse.zsl.data import Features, Indices, ZslData
from vgse.zsl.folds import Fold, PreparedFold, final_fold, prepare, validation_fold
from vgse.zsl.hyperparameters import choose, final_result
from vgse.zsl.models import find_model
from vgse.zsl.models.bilinear import Embeddings
from vgse.zsl.rows import RowInputs, assembled, smo_row

_INNER_SHARE = 0.2
_CHOSEN_BY = 200
MEASURES = ("zsl", "seen", "unseen", "harmonic_mean")


@dataclass(frozen=True)
class Problem:
    """Two zero-shot problems within the training images, with features as models get them."""

    inner: Fold  # a fifth of the training classes is unseen: everything is chosen here
    inner_features: PreparedFold
    outer: Fold  # validation classes are unseen: trials are scored here
    outer_features: PreparedFold
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
    seed: int,
) -> Problem:
    """The problem that all trials of a search are scored on.

    Of features [M, D_f] and labels [M] of training images, those of the classes `val` among them;
    `holdout` is the share of the images of each class in `trained` that plays test_seen.
    """
    if len(trained) < 4:
        raise UserError(
            f"{len(trained)} training classes besides {len(val)} validation classes; a search "
            "needs at least 4: pack again with fewer validation classes"
        )
    train, held = _hold_out(labels, trained, holdout, seed)
    num_inner = max(2, round(_INNER_SHARE * len(trained)))
    data = ZslData(
        features,
        labels,
        train=train,
        test_seen=held,
        test_unseen=np.flatnonzero(np.isin(labels, val)),
        class_names=class_names,
        seen=np.sort(trained),
        unseen=np.sort(val),
        val=np.sort(np.random.default_rng(seed).permutation(np.sort(trained))[:num_inner]),
    )
    inner = validation_fold(data, holdout, seed)
    outer = final_fold(data)
    return Problem(inner, prepare(data, inner), outer, prepare(data, outer), seed)


def _hold_out(
    labels: Indices, trained: Indices, holdout: float, seed: int
) -> tuple[Indices, Indices]:
    """Images to learn from, and to play test_seen; the inner problem holds out one of two more."""
    train, held = [], []
    for label in trained:
        images = np.flatnonzero(labels == label)
        images = np.random.default_rng((seed, 1, int(label))).permutation(images)
        count = min(max(1, round(holdout * len(images))), max(0, len(images) - 2))
        held.append(images[:count])
        train.append(images[count:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held))


def zero_shot_scores(
    problem: Problem,
    own: NDArray[np.float64],
    word_vectors: NDArray[np.float64],
    knowledge: Knowledge,
    relations: RelationConfig,
    normalise: str,
    models: Sequence[str],
) -> dict[str, float]:
    """MEASURES of class embeddings in 0..1, means over the zero-shot models.

    `own` [C, D_v] are embeddings of the training classes; other rows are not looked at. Knowledge
    and ridge are chosen anew for these embeddings, in each fold on its seen classes, of which at
    most 200 take part: about half a second.
    """

    def embeddings(fold: Fold) -> Embeddings:
        known = np.full_like(own, np.nan)
        known[fold.seen] = own[fold.seen]
        of_seen, seed = own[fold.seen], problem.seed
        chosen = choose_knowledge(
            *(knowledge, word_vectors, fold.seen, of_seen, relations, seed),
            max_classes=_CHOSEN_BY,
        )
        inputs = RowInputs(fold.seen, fold.unseen, known, solve=problem.solve, chosen=chosen)
        blocks = smo_row(inputs, relations.alpha)
        return assembled(blocks, len(fold.seen), normalise)

    inner, outer = embeddings(problem.inner), embeddings(problem.outer)
    results = []
    for model in map(find_model, models):
        choice = choose(model, problem.inner_features, inner, problem.seed)
        results.append(final_result(model, problem.outer_features, outer, choice, problem.seed))
    return {
        name: float(np.mean([getattr(result, name) for result in results])) for name in MEASURES
    }
