"""What a search prints: tables of 80 columns, and how each trial ended."""

import io
from collections.abc import Mapping

from rich.console import Console

from tune.callbacks import describe_trial
from tune.report.analyse import trial_table
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
    return TrialRecord("0012", dict(params), state, "a cause", history, 20, "cache")


def printed(table: object) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=80).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_the_table_of_the_default_space_fits_eighty_columns_without_broken_numbers() -> None:
    assert set(PARAMS) == set(default_space())
    heads, row = printed(trial_table([record()], sorted(PARAMS), 80))
    assert heads.split()[4:] == [
        "λ_cls", "λ_clu", "λ_ent", "λ_sem", "D_v", "τ", "α", "lr",
    ]  # fmt: skip
    assert row.split() == [
        "0012", "finished", "34.6", "20/20",
        "0.0346", "0.00123", "9.88", "0.00346", "300", "0.0212", "−0.05", "0.000123",
    ]  # fmt: skip
    assert max(len(heads), len(row)) <= 80


def test_a_large_space_is_shown_in_part() -> None:
    many = {f"loss.quite_a_long_name_{number}": 0.5 for number in range(9)}
    lines = printed(trial_table([record(params=many)], sorted(many), 80))
    assert len(lines) == 2 and max(map(len, lines)) <= 80


def test_a_trial_is_described_with_its_cause_and_its_parameters() -> None:
    line = describe_trial(record("failed"))
    assert line.startswith("failed, epoch 20/20, 34.6 %, a cause (λ_cls 0.0346, ")
