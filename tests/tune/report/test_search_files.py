"""Search folders that are whole, young, damaged, or none."""

import math
from pathlib import Path

import pytest

from search_folder import final_row, make_search, write_trial
from tune.report.analyse import analyse
from tune.report.axes import Axis, value_text
from tune.report.search_files import load_search
from vgse.errors import UserError


@pytest.mark.parametrize("file", ["search.yaml", "final.json", "search.json"])
def test_a_cut_off_file_of_the_search_is_named(tmp_path: Path, file: str) -> None:
    folder = make_search(tmp_path / "s", trials=3)
    (folder / file).write_text('{"version": 1, "ro')
    with pytest.raises(UserError, match=rf"{file}: cannot be read") as error:
        analyse(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", ["3", "[3]", '[{"name": "a"}]', '[{"test": []}]'])
def test_damaged_results_are_named(tmp_path: Path, rows: str) -> None:
    folder = make_search(tmp_path / "s", trials=3, finals=[final_row("default", 0.3, 0.2)])
    (folder / "final.json").write_text(f'{{"version": 1, "rows": {rows}}}')
    with pytest.raises(UserError, match=r"final.json: its rows are damaged; move it away"):
        load_search(folder)


def test_a_folder_without_a_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no search; give a folder that `python -m tune"):
        analyse(tmp_path)


def test_places_on_an_axis() -> None:
    log = Axis("x", 0.01, 1.0, True)
    assert [log.place(v) for v in (0.01, 0.1, 1, 5, 0, "a")] == pytest.approx(
        [0, 0.5, 1, 1, None, None]
    )
    choices = Axis("x", 0, 1, False, (50, 100))
    assert [choices.place(v) for v in (50, 100.0, 75)] == [0.25, 0.75, None]
    assert Axis("x", 2, 2, False).place(2) == 0.5


def test_values_read_as_numbers() -> None:
    assert [value_text(v) for v in (0.070123, 150, 3e-05, 12345.6, -0.05, "plain", True)] == [
        "0.0701", "150", "3e\N{MINUS SIGN}5", "12346", "\N{MINUS SIGN}0.05", "plain", "True",
    ]  # fmt: skip


def test_an_objective_that_is_not_finite_is_none(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "s", trials=12)
    write_trial(folder, curve=[math.inf], state="failed")
    odd = load_search(folder).trials[-1]
    assert (odd.name, odd.objective, odd.history) == ("0012", None, [])
    assert "13 trials" in analyse(folder).read_text(encoding="utf-8")
