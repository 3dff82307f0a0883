"""What a search is worth, in sentences."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from search_folder import final_row, make_search
from tune.report.search_files import load_search
from tune.report.verdict import headline, judge_ranks, spearman

FINALS = [
    final_row("default", 0.30, 0.25),
    final_row("0007", 0.39, 0.28),
    final_row("0011", 0.38, 0.27),
]


def test_the_headline_tells_validation_test_and_the_gain(tmp_path: Path) -> None:
    first, second = headline(load_search(make_search(tmp_path / "s", finals=FINALS)))
    assert re.match(
        r"60 trials\. Best on the validation classes: trial \d{4} with 3\d\.\d% zero", first
    )
    assert second == (
        "Retrained, 0007 reaches 28.0% on the test classes, the default configuration 25.0%: "
        "the search gained 3.0 points."
    )


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([final_row("default", 0.3, 0.28), final_row("0007", 0.4, 0.25)], "lost 3.0 points"),
        ([final_row("default", 0.3, 0.28), final_row("0007", 0.4, 0.28)], "gained nothing on test"),
        ([final_row("default", 0.4, 0.2), final_row("0007", 0.3, 0.28)], "keep the default"),
        ([final_row("0007", 0.3, 0.28)], "the default configuration was not measured"),
        (
            [final_row("default", 0.3, 0.2), final_row("0007", 0.4, None, cause="disk full")],
            "disk full",
        ),
        ([final_row("default", 0.3, None), final_row("0007", 0.4, None)], "have not been opened"),
        ([], "have not been opened"),
    ],
)
def test_the_headline_is_honest(tmp_path: Path, rows: list[Any], sentence: str) -> None:
    folder = make_search(tmp_path / "s", trials=3, finals=rows)
    assert sentence in headline(load_search(folder))[1]


def test_the_winner_is_chosen_by_validation_and_not_by_test(tmp_path: Path) -> None:
    rows = [
        final_row("default", 0.2, 0.2),
        final_row("0001", 0.3, 0.9),
        final_row("0002", 0.4, 0.1),
    ]
    folder = make_search(tmp_path / "s", trials=3, finals=rows)
    assert "0002 reaches 10.0%" in headline(load_search(folder))[1]


def test_spearman_counts_how_often_chance_gives_as_much() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx((1, 1 / 6))
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx((-1, 1))
    assert spearman([1, 1, 2], [5, 5, 9]) == pytest.approx((1, 1 / 3))
    rho, chance = spearman(list(range(20)), list(range(20)))
    assert rho == pytest.approx(1) and chance < 0.001
    assert all(math.isnan(value) for value in spearman([1, 1, 1], [1, 2, 3]))


def test_a_high_correlation_of_three_is_no_proof(tmp_path: Path) -> None:
    sentence = judge_ranks(load_search(make_search(tmp_path / "s", trials=3, finals=FINALS)))
    assert sentence.startswith("Rank correlation (Spearman) of validation and test: 1.00.")
    assert "16.7% of cases, so this does not show" in sentence
