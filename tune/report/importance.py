"""How much each hyper-parameter matters, beside what chance alone would show."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from tune.report.axes import Axis
from tune.report.search_files import finite
from tune.study import TrialRecord

TOO_FEW = 10
MOST_TRIALS = 400
NUM_TREES, MAX_DEPTH = 32, 6  # deeper trees cost eight times as much at 300 trials, for the same
NUM_CONTROLS = 16
NUM_SPANS, LEAST_SPAN = 8, 5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """Shares of the objective's variance over the search space that one parameter explains."""

    shares: dict[str, float]  # largest first; they sum to less than 1, the rest is joint or noise
    floor: float  # largest share of NUM_CONTROLS shuffled copies, each fitted beside them
    num_trials: int


def importance(
    trials: Sequence[TrialRecord], axes: Sequence[Axis], *, seed: int = 0
) -> Importance | None:
    """fANOVA (Hutter et al., ICML 2014) of the carried objectives; None below TOO_FEW trials.

    Failed trials are left out, and those that lack a parameter. The floor's copies are shuffled
    among trials of about the same time: in a search that learns even an idle parameter drifts.
    """
    scores = carried_objectives(trials)
    kept = [t for t in trials if t.name in scores and t.state not in ("failed", "running")]
    rows = [[axis.place(trial.params.get(axis.name)) for axis in axes] for trial in kept]
    whole = [n for n, row in enumerate(rows) if None not in row]
    if len(whole) > MOST_TRIALS:
        whole = [whole[n] for n in np.linspace(0, len(whole) - 1, MOST_TRIALS).astype(int)]
    if len(whole) < TOO_FEW or not axes:
        return None
    places = np.array([rows[n] for n in whole], np.float64)  # [T, A]
    values = np.array([scores[kept[n].name] for n in whole])  # [T]
    if np.ptp(values) == 0 or np.ptp(places, axis=0).max() == 0:
        return None
    shares = _shares(places, values, axes, seed)
    generator = np.random.default_rng(seed)
    copies = []
    for control in range(NUM_CONTROLS):
        column = control % len(axes)
        parts = max(1, min(NUM_SPANS, len(places) // LEAST_SPAN))
        spans = np.array_split(places[:, [column]], parts)
        copy = np.vstack([generator.permuted(span, axis=0) for span in spans])
        beside = [*axes, axes[column]]
        copies.append(_shares(np.hstack([places, copy]), values, beside, seed + control)[-1])
    order = sorted(range(len(axes)), key=lambda a: -shares[a])
    return Importance({axes[a].name: shares[a] for a in order}, max(copies), len(whole))


def carried_objectives(trials: Sequence[TrialRecord]) -> dict[str, float]:
    """Name -> objective, carried to the last epoch of the search, of every measured trial.

    A stopped trial's last one grows by prod_e sum_t y[t, e'] / sum_t y[t, e], over the trials t
    that measured both of the successive epochs e and e'.
    """
    curves = {
        trial.name: {row["epoch"]: row["objective"] for row in trial.history}
        for trial in trials
        if trial.history
    }
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    growth = dict.fromkeys(epochs, 1.0)
    for early, late in reversed(list(pairwise(epochs))):
        both = [curve for curve in curves.values() if early in curve and late in curve]
        before, after = (sum(curve[epoch] for curve in both) for epoch in (early, late))
        growth[early] = growth[late] * (after / before if before > 0 and after > 0 else 1.0)
    return {
        trial.name: trial.objective * growth[trial.epoch]
        for trial in trials
        if trial.objective is not None
    }


def _shares(places: Floats, values: Floats, axes: Sequence[Axis], seed: int) -> list[float]:
    """Share of each column of places [T, A], which weigh every decade of a log scale alike."""
    names = [f"column {n}" for n in range(places.shape[1])]
    distributions: dict[str, BaseDistribution] = {
        name: FloatDistribution(0.0, 1.0)
        if all(finite(choice) is not None for choice in axis.choices)
        else CategoricalDistribution([axis.place(c) for c in axis.choices])
        for name, axis in zip(names, axes, strict=True)
    }
    rows = [dict(zip(names, map(float, row), strict=True)) for row in places]
    study = study_of([(r, float(v), {}) for r, v in zip(rows, values, strict=True)], distributions)
    evaluator = FanovaImportanceEvaluator(n_trees=NUM_TREES, max_depth=MAX_DEPTH, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = get_param_importances(study, evaluator=evaluator, normalize=False)
    return [float(found[name]) if math.isfinite(found[name]) else 0.0 for name in names]


def study_of(
    rows: Iterable[tuple[dict[str, Any], float, dict[int, float]]],
    distributions: Mapping[str, BaseDistribution],
) -> optuna.Study:
    """A study in memory of complete trials: parameters, objective, and objectives by epoch."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for params, value, curve in rows:
        known = {name: distributions[name] for name in params}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=known, value=value, intermediate_values=curve
            )
        )
    return study
