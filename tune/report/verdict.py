"""What a search is worth, in sentences that also say so when it is worth nothing."""

import math
from collections import Counter
from collections.abc import Sequence

from scipy.stats import pearsonr, permutation_test, rankdata

from tune.report.search_files import FinalRow, Search
from tune.study import TrialRecord
from vgse.report.page import number, percent

OBJECTIVES = {
    "zsl": "zero-shot accuracy (T1)",
    "harmonic_mean": "harmonic mean (H)",
    "seen": "accuracy on seen classes",
    "unseen": "accuracy on unseen classes",
    "own_images": "accuracy of own images under the clusters",
    "own_images+zsl": "mean of own images under the clusters and T1",
    "own_images+harmonic_mean": "mean of own images under the clusters and H",
}
STATE_WORDS = {s: s for s in ("finished", "stopped", "collapsed", "failed", "running")}
STATE_WORDS["stopped"] = "stopped early"
NUM_ORDERS = 20_000


def counts(trials: Sequence[TrialRecord]) -> str:
    """The number of trials of every state that occurs."""
    found = Counter(trial.state for trial in trials)
    return ", ".join(f"{found[s]:,} {word}" for s, word in STATE_WORDS.items() if found[s])


def causes(trials: Sequence[TrialRecord]) -> list[tuple[str, str, list[str]]]:
    """(state, cause, names of trials), the most frequent first, of failed and collapsed trials."""
    groups: dict[tuple[str, str], list[str]] = {}
    for trial in trials:
        if trial.state in ("failed", "collapsed"):
            cause = trial.cause or "no cause was recorded"
            groups.setdefault((trial.state, cause), []).append(trial.name)
    order = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [(state, cause, names) for (state, cause), names in order]


def winner_of(search: Search) -> FinalRow | None:
    """The row with the highest validation that is not the default."""
    return next((row for row in search.final if not row.is_default), None)


def tested_rows(search: Search) -> list[FinalRow]:
    """The rows that have both results, of validation and of test."""
    return [r for r in search.final if r.validation is not None and search.tested_by in r.test]


def headline(search: Search) -> list[str]:
    """How many trials, what the best reached on validation, and what that is worth on test."""
    total = len(search.trials)
    trials = "1 trial" if total == 1 else f"{total:,} trials"
    best = search.best
    if best is None or best.objective is None:
        return [f"{trials}, and none has finished an epoch yet."]
    what = OBJECTIVES.get(search.objective, search.objective)
    unfinished = "" if best.state == "finished" else ", though it was stopped early"
    running = sum(trial.state == "running" for trial in search.trials)
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
    if default is not None and (default.validation or 0) >= (winner.validation or 0):
        return (
            "No trial was above the default configuration on the validation classes: keep the "
            "default."
        )
    ours = winner.test.get(search.tested_by)
    if ours is None:
        return f"{winner.name} has no test results{f': {winner.cause}' if winner.cause else '.'}"
    text = f"Retrained, {winner.name} reaches {percent(ours)}% on the test classes"
    theirs = None if default is None else default.test.get(search.tested_by)
    if theirs is None:
        return f"{text}; the default configuration was not measured beside it."
    text += f", the default configuration {percent(theirs)}%"
    gain = round(100 * (ours - theirs), 1)
    if gain < 0:
        return (
            f"{text}: the search lost {number(-gain, 1)} points. What it gained on validation "
            "did not carry over."
        )
    points = f"{number(gain, 1)} points" if gain else "nothing on test"
    return f"{text}: the search gained {points}."


def judge_ranks(search: Search) -> str:
    """The rank correlation of validation and test, and how often chance gives as much."""
    rows = tested_rows(search)
    if len(rows) < 3:
        return "Fewer than three configurations have both figures: their ranks say nothing."
    test = [row.test[search.tested_by] for row in rows]
    rho, chance = spearman([row.validation or 0.0 for row in rows], test)
    if math.isnan(rho):
        return "All validation or all test figures are equal: their ranks say nothing."
    start = f"Rank correlation (Spearman) of validation and test: {number(rho)}"
    odds = f"{len(rows)} configurations in random order reach that in {percent(chance)}% of cases"
    if rho <= 0:
        return f"{start}. Among these, validation did not predict test."
    if chance > 0.05:
        return f"{start}. {odds}, so this does not show that validation predicts test."
    return f"{start}. {odds}: validation predicts test."


def spearman(one: Sequence[float], two: Sequence[float]) -> tuple[float, float]:
    """Spearman's ρ, and the share of random orders with at least that ρ.

    All orders are counted up to seven pairs, beyond that NUM_ORDERS drawn ones. NaN for constants.
    """
    if len(set(one)) == 1 or len(set(two)) == 1:
        return math.nan, math.nan
    first, second = rankdata(one), rankdata(two)
    orders = permutation_test(
        (first,),
        lambda ranks, axis: (ranks * second).sum(axis=axis),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=NUM_ORDERS,
        vectorized=True,
        rng=0,
    )
    return float(pearsonr(first, second).statistic), float(orders.pvalue)
