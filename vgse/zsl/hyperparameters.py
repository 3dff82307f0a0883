"""Choice of hyper-parameters and gamma on validation classes, and scores with them."""

from dataclasses import dataclass

import numpy as np

from vgse.zsl.folds import PreparedFold
from vgse.zsl.metrics import GeneralisedScores, best_gamma, calibrated_stacking, per_class_top1
from vgse.zsl.models import Model, Params
from vgse.zsl.models.bilinear import Embeddings, Score

_SPREAD_IMAGES = 2000


@dataclass(frozen=True)
class Choice:
    """What validation chose for one row and one model."""

    params: Params
    gamma: float
    spread: float
    """The `score_spread` at which gamma was chosen."""
    val_zsl: float
    """Per-class top-1 among the validation classes, in 0..1."""
    val_harmonic_mean: float


@dataclass(frozen=True)
class Result:
    """The final scores of one row and one model, in 0..1."""

    zsl: float
    seen: float
    unseen: float
    harmonic_mean: float
    gamma: float
    """That of validation, scaled to the spread of the final scores."""
    uncalibrated_harmonic_mean: float
    """At a gamma of 0, as published tables without calibrated stacking have it."""


def zsl_top1(score: Score, fold: PreparedFold, embeddings: Embeddings) -> float:
    """Per-class top-1 of the fold's unseen images among its unseen classes."""
    scores = score(fold.unseen_features, embeddings[fold.num_seen :])
    return per_class_top1(scores.argmax(1) + fold.num_seen, fold.unseen_labels)


def generalised_scores(
    score: Score, fold: PreparedFold, embeddings: Embeddings
) -> GeneralisedScores:
    """Scores of the fold's seen and unseen images among all its classes."""
    return GeneralisedScores(
        score(fold.seen_features, embeddings),
        score(fold.unseen_features, embeddings),
        fold.seen_labels,
        fold.unseen_labels,
        fold.num_seen,
    )


def score_spread(score: Score, fold: PreparedFold, embeddings: Embeddings) -> float:
    """Standard deviation of the scores of an image, over the fold's training images.

    Refitted on more classes and images a model scores on another scale, and gamma with it.
    """
    images = fold.training.features
    scores = score(images[:: 1 + len(images) // _SPREAD_IMAGES], embeddings)
    return float(np.sqrt(np.var(scores, axis=1).mean()))


def choose(model: Model, fold: PreparedFold, embeddings: Embeddings, seed: int) -> Choice:
    """The hyper-parameters with the best top-1 on a validation fold, then gamma by the best H.

    `embeddings` [S + U, D_e] are those of the fold's seen classes, then of its pseudo-unseen
    ones. Ties go to the earlier entry of the grid.
    """
    best: tuple[float, Params, Score] | None = None
    for params in model.grid:
        score = model.fit(fold.training, embeddings[: fold.num_seen], seed=seed, **params)
        accuracy = zsl_top1(score, fold, embeddings)
        if best is None or accuracy > best[0]:
            best = accuracy, params, score
    assert best is not None, "a model has at least one set of hyper-parameters"
    accuracy, params, score = best
    gamma, generalised = best_gamma(generalised_scores(score, fold, embeddings))
    spread = score_spread(score, fold, embeddings)
    return Choice(params, gamma, spread, accuracy, generalised.harmonic_mean)


def final_result(
    model: Model, fold: PreparedFold, embeddings: Embeddings, choice: Choice, seed: int
) -> Result:
    """Scores of the model refitted on all seen classes with what validation chose."""
    score = model.fit(fold.training, embeddings[: fold.num_seen], seed=seed, **choice.params)
    scale = score_spread(score, fold, embeddings) / choice.spread if choice.spread > 0 else 1.0
    gamma = choice.gamma * scale
    scores = generalised_scores(score, fold, embeddings)
    generalised = calibrated_stacking(scores, gamma)
    return Result(
        zsl_top1(score, fold, embeddings),
        generalised.seen,
        generalised.unseen,
        generalised.harmonic_mean,
        gamma,
        calibrated_stacking(scores, 0.0).harmonic_mean,
    )
