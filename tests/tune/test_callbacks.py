"""What a search prints: tables of 80 columns, and how each trial ended."""

import io
from collections.abc import Mapping

import pytest
from rich.console import Console

from tune.callbacks import SearchDisplay, format_value, trial_table
from tune.space import default_space
from tune.study import TrialRecord

PARAMS = {
    "loss.classification": 0.03456789,
    "loss.consistency": 0.00123456,
    "loss.entropy": 9.87654321,
    "loss.semantic": 0.00345678,
    "model.num_clusters": 300,
    "model.temperature": 0.0212345,
    "relations.alpha": -0.05,
    "training.learning_rate": 0.000123456,
}


def record(state: str = "finished", params: Mapping[str, object] = PARAMS) -> TrialRecord:
    history = [{"epoch": 20, "objective": 0.34567}]
    return TrialRecord("0012", dict(params), state, "a cause", history, 20, "cache", 0.0)


def printed(table: object) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=80).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_the_table_of_the_default_space_fits_eighty_columns_without_broken_numbers() -> None:
    assert set(PARAMS) == set(default_space())
    title, heads, row = printed(trial_table("best trials", [record("stopped")]))
    assert heads.split()[4:] == ["cls", "clu", "ent", "sem", "D_v", "τ", "α", "rate"]
    assert row.split()[3:] == [
        "34.6", "0.035", "0.0012", "9.9", "0.0035", "300", "0.021", "-0.05", "1.2e-4",
    ]  # fmt: skip
    assert max(map(len, [title, heads, row])) <= 80


def test_a_large_space_says_where_the_rest_is_shown() -> None:
    many = {f"loss.quite_a_long_name_{number}": 0.5 for number in range(9)}
    lines = printed(trial_table("best trials", [record(params=many)]))
    assert max(map(len, lines)) <= 80 and "search.html shows all parameters" in lines[-1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1e-4, "1.0e-4"), (10.0, "10"), (-1.0, "-1"), (150, "150"), ("kmeans", "kmeans")],
)
def test_values_are_short(value: object, text: str) -> None:
    assert format_value(value) == text and len(text) <= 6


def test_a_trial_that_went_wrong_is_told_with_its_cause() -> None:
    stream = io.StringIO()
    display = SearchDisplay(4, "zsl", console=Console(file=stream, width=80))
    display.ended(record("failed"))
    told = stream.getvalue()
    assert told.startswith("0012 failed") and "a cause" in told and told.count("\n") == 1
