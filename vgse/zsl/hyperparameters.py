"""Choice of normalisation, hyper-parameters and gamma on folds of the seen classes, and the scores
with them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from vgse.zsl.data import Indices
from vgse.zsl.folds import PreparedFold
from vgse.zsl.metrics import (
    Generalised,
    GeneralisedScores,
    best_gamma,
    calibrated_stacking,
    per_class_top1,
    seen_unseen_area,
    stacked_predictions,
    stacking_curve,
)
from vgse.zsl.models import Model
from vgse.zsl.models.bilinear import Embeddings, Params, Score

NORMALISATIONS = ("z", "l2", "none")
_SPREAD_IMAGES = 2000
_CURVE_POINTS = 41


@dataclass(frozen=True)
class Choice:
    """What validation chose for one row and one model."""

    params: Params
    normalise: str
    gamma: float
    """In units of `score_spread`; 0 for a model that takes the plain arg max."""
    val_zsl: float
    """Per-class top-1 among a fold's unseen classes, in 0..1; the mean over folds."""
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
    uncalibrated_seen: float
    """At a gamma of 0, as published tables without calibrated stacking have it."""
    uncalibrated_unseen: float
    uncalibrated_harmonic_mean: float
    ausuc: float


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
    """Standard deviation of the scores of an image, over the fold's training images; 1 where all
    are equal.

    Refitted on more classes and images a model scores on another scale, and gamma with it.
    """
    images = fold.training.features
    scores = score(images[:: 1 + len(images) // _SPREAD_IMAGES], embeddings)
    return float(np.sqrt(np.var(scores, axis=1).mean())) or 1.0


def normalisations_for(model: Model, normalise: str) -> tuple[str, ...]:
    """Those that differ for the model, where it is to be chosen, and else the given one."""
    if normalise != "auto":
        return (normalise,)
    return NORMALISATIONS[:2] if model.unit_length else NORMALISATIONS


def choose(
    model: Model,
    folds: Sequence[PreparedFold],
    embeddings: Callable[[int, str], Embeddings],
    normalise: str,
    seed: int,
) -> Choice:
    """The normalisation and hyper-parameters with the best top-1, the mean over folds, then gamma
    by the best H of the folds together. Ties go to the earlier entry of the grid.

    `embeddings` are those of a fold, by its number, in a normalisation: [S + U, D_e], its seen
    classes first. Of the entries of a model that is learned by SGD only the better half, by the
    folds so far, goes on to the next fold.
    """
    grid = [(way, params) for way in normalisations_for(model, normalise) for params in model.grid]
    learned: list[list[Score]] = [[] for _ in grid]
    totals = np.zeros(len(grid))
    alive = np.arange(len(grid))
    for number, fold in enumerate(folds):
        if number and model.stochastic:
            half = -(-len(alive) // 2)
            alive = np.sort(alive[np.argsort(-totals[alive], kind="stable")[:half]])
        for way in dict.fromkeys(grid[index][0] for index in alive):
            rows = embeddings(number, way)
            together = [index for index in alive if grid[index][0] == way]
            entries = [grid[index][1] for index in together]
            fitted = model.fit_grid(fold.training, rows[: fold.num_seen], seed, entries)
            for index, score in zip(together, fitted, strict=True):
                totals[index] += zsl_top1(score, fold, rows)
                if model.stochastic:
                    learned[index].append(score)
    best = int(alive[totals[alive].argmax()])
    way, params = grid[best]
    rows_of = [embeddings(number, way) for number in range(len(folds))]
    # What SGD learned is small, and dear to make again; of closed forms it is the other way round.
    scores: Iterable[Score] = learned[best] or (
        model.fit(fold.training, rows[: fold.num_seen], seed=seed, **params)
        for fold, rows in zip(folds, rows_of, strict=True)
    )
    parts = zip(scores, folds, rows_of, strict=True)
    curve = stacking_curve((generalised_scores(*part), score_spread(*part)) for part in parts)
    if model.calibrated:
        gamma, generalised = best_gamma(curve)
    else:
        gamma, generalised = 0.0, curve.at(0.0)
    accuracy = float(totals[best] / len(folds))
    return Choice(params, way, gamma, accuracy, generalised.harmonic_mean)


def cross_validate(
    model: Model,
    folds: Sequence[PreparedFold],
    embeddings: Callable[[int, str], Embeddings],
    normalise: str,
    seed: int,
) -> tuple[float, Generalised]:
    """T1, and u, s and H, means over folds, each with what the other folds choose.

    A single fold is scored with what it chooses itself. `embeddings` as for `choose`.
    """
    count = len(folds)
    grid = [(way, params) for way in normalisations_for(model, normalise) for params in model.grid]
    accuracy = np.empty((count, len(grid)))
    scores: list[list[Score]] = []
    for number, fold in enumerate(folds):
        scores.append([])
        for way in dict.fromkeys(way for way, _ in grid):
            rows = embeddings(number, way)
            for score in model.fit_grid(fold.training, rows[: fold.num_seen], seed, model.grid):
                accuracy[number, len(scores[-1])] = zsl_top1(score, fold, rows)
                scores[-1].append(score)

    @cache
    def part(number: int, at: int) -> tuple[GeneralisedScores, float]:
        mine = scores[number][at], folds[number], embeddings(number, grid[at][0])
        return generalised_scores(*mine), score_spread(*mine)

    found = []
    for number in range(count):
        others = [other for other in range(count) if other != number or count == 1]
        at = int(accuracy[others].mean(0).argmax())
        gamma = 0.0
        if model.calibrated:
            gamma, _ = best_gamma(stacking_curve(part(i, at) for i in others))
        generalised, spread = part(number, at)
        stacked = calibrated_stacking(generalised, gamma * spread)
        found.append((accuracy[number, at], stacked.seen, stacked.unseen, stacked.harmonic_mean))
    zsl, seen, unseen, harmonic = np.mean(found, axis=0)
    return float(zsl), Generalised(float(seen), float(unseen), float(harmonic))


@dataclass(frozen=True)
class Predictions:
    """Classes that a model gives test images, as rows of [seen; unseen] embeddings."""

    zsl: Indices  # [M_u] of images of unseen classes, among the unseen ones
    of_seen: Indices  # [M_s] of images of seen classes, among all, with gamma
    of_unseen: Indices  # [M_u]


def final_result(
    model: Model,
    fold: PreparedFold,
    embeddings: Embeddings,
    choice: Choice,
    seed: int,
    keep: Callable[[Predictions], object] | None = None,
) -> tuple[Result, list[tuple[float, float]]]:
    """Scores of the model refitted on all seen classes with what validation chose, and points
    (unseen, seen) of its curve over gamma; `keep` gets the predictions."""
    score = model.fit(fold.training, embeddings[: fold.num_seen], seed=seed, **choice.params)
    scores = generalised_scores(score, fold, embeddings)
    gamma = choice.gamma * score_spread(score, fold, embeddings)
    generalised, plain = calibrated_stacking(scores, gamma), calibrated_stacking(scores, 0.0)
    if keep is not None:
        among_unseen = score(fold.unseen_features, embeddings[fold.num_seen :]).argmax(1)
        of_seen, of_unseen = stacked_predictions(scores, gamma)
        keep(Predictions(among_unseen + fold.num_seen, of_seen, of_unseen))
    curve = stacking_curve([(scores, 1.0)])
    result = Result(
        zsl_top1(score, fold, embeddings),
        generalised.seen,
        generalised.unseen,
        generalised.harmonic_mean,
        gamma,
        plain.seen,
        plain.unseen,
        plain.harmonic_mean,
        seen_unseen_area(curve),
    )
    return result, curve.points(_CURVE_POINTS)
