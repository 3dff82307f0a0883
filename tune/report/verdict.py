"""What a search is worth, in sentences that also say so when it is worth nothing."""

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from scipy.stats import rankdata

from tune.report.search_files import FinalRow, Search
from vgse.report.page import number, percent

OBJECTIVES = {
    "zsl": "zero-shot accuracy (T1)",
    "harmonic_mean": "harmonic mean (H)",
    "seen": "accuracy on seen classes",
    "unseen": "accuracy on unseen classes",
}
NUM_ORDERS = 20_000


def winner_of(search: Search) -> FinalRow | None:
    """The row with the highest validation that is not the default."""
    return next((row for row in search.final if not row.is_default), None)


def headline(search: Search) -> list[str]:
    """How many trials, what the best reached on validation, and what that is worth on test."""
    total = len(search.trials)
    trials = "1 trial" if total == 1 else f"{total:,} trials"
    best = search.best
    if best is None or best.objective is None:
        return [f"{trials}, and none has finished an epoch yet."]
    what = OBJECTIVES.get(search.objective, search.objective)
    unfinished = "" if best.state == "finished" else ", though it was stopped early"
    running = len(search.with_state("running"))
    so_far = f" so far, with {running:,} still running" if running else ""
    first = (
        f"{trials}{so_far}. Best on the validation classes: trial {best.name} with "
        f"{percent(best.objective)}% {what}{unfinished}."
    )
    return [first, _on_test(search, what)]


def _on_test(search: Search, what: str) -> str:
    winner = winner_of(search)
    default = next((row for row in search.final if row.is_default), None)
    if winner is None or not any(row.test for row in search.final):
        return "The test images have not been opened."
    beaten = default is not None and (default.validation or 0) >= (winner.validation or 0)
    if beaten:
        return (
            "No trial was above the default configuration on the validation classes: keep the "
            "default."
        )
    ours = winner.test.get(search.objective)
    if ours is None:
        return f"{winner.name} has no test results{f': {winner.cause}' if winner.cause else '.'}"
    text = f"Retrained, {winner.name} reaches {percent(ours)}% on the test classes"
    theirs = None if default is None else default.test.get(search.objective)
    if theirs is None:
        return f"{text}; the default configuration was not measured beside it."
    text += f", the default configuration {percent(theirs)}%"
    gain = round(100 * (ours - theirs), 1)
    if gain > 0:
        return f"{text}: the search gained {number(gain, 1)} points."
    if gain < 0:
        return (
            f"{text}: the search lost {number(-gain, 1)} points. What it gained on validation "
            "did not carry over."
        )
    return f"{text}: the search gained nothing on test."


def judge_ranks(search: Search) -> str:
    """The rank correlation of validation and test, and how often chance gives as much."""
    pairs = [
        (row.validation, row.test[search.objective])
        for row in search.final
        if row.validation is not None and search.objective in row.test
    ]
    if len(pairs) < 3:
        return "Fewer than three configurations have both figures: their ranks say nothing."
    rho, chance = spearman([v for v, _ in pairs], [t for _, t in pairs])
    if math.isnan(rho):
        return "All validation or all test figures are equal: their ranks say nothing."
    start = f"Rank correlation (Spearman) of validation and test: {number(rho)}"
    odds = f"{len(pairs)} configurations in random order reach that in {percent(chance)}% of cases"
    if rho <= 0:
        return f"{start}. Among these, validation did not predict test."
    if chance > 0.05:
        return f"{start}. {odds}, so this does not show that validation predicts test."
    return f"{start}. {odds}: validation predicts test."


def spearman(one: Sequence[float], two: Sequence[float]) -> tuple[float, float]:
    """Spearman's ρ, and the share of random orders with at least that ρ.

    All orders are counted up to seven pairs, beyond that 20,000 drawn ones. NaN for constants.
    """
    first, second = (rankdata(values) for values in (one, two))
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt(float((first**2).sum() * (second**2).sum()))
    if scale == 0:
        return math.nan, math.nan
    if len(first) <= 7:
        orders = np.array(list(permutations(second)))  # [n!, n]
    else:
        drawn = np.tile(second, (NUM_ORDERS, 1))
        orders = np.random.default_rng(0).permuted(drawn, axis=1)
    rho = float(first @ second) / scale
    return rho, float(np.mean(orders @ first / scale >= rho - 1e-12))
