"""What `python -m tune analyse` prints."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from search_folder import drawn, make_search, one_trial, write_trial, write_trials
from tune.report.analyse import analyse
from tune.report.search_files import load_search


def test_the_terminal_shows_best_trials_states_causes_importance_and_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_search(tmp_path / "s", trials=20, finals=[])
    params = drawn(np.random.default_rng(9))
    write_trial(folder, params, state="failed", cause="CUDA out of memory")
    write_trial(folder, params, [0.05], state="collapsed", cause="5 of 100 clusters are in use")
    path = analyse(folder)
    out = capsys.readouterr().out
    assert path == folder / "search.html" and path.is_file()
    assert f"trial {load_search(folder).best.name}" in out  # type: ignore[union-attr]
    assert "1 collapsed, 1 failed" in out
    assert "failed 1x: CUDA out of memory (0020)" in out
    assert re.search(r"importance: τ \d\d%, .*below \d+% it may be chance", out)
    assert "have not been opened" in out


@pytest.mark.parametrize("trials", [1, 9])
def test_too_few_trials_are_said_to_be_too_few(
    tmp_path: Path, trials: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = analyse(make_search(tmp_path / "short", trials=trials))
    assert "importance: too few trials" in capsys.readouterr().out
    assert "Too few trials: importances need at least 10" in path.read_text(encoding="utf-8")


def test_the_table_fits_80_columns_when_it_is_piped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    folder = make_search(tmp_path / "s", trials=0)
    names = [f"section.a_field_of_{n}_words" for n in range(9)]
    write_trials(folder, [one_trial(dict.fromkeys(names, 0.1234567 + n), [0.2]) for n in range(3)])
    analyse(folder)
    table = capsys.readouterr().out.splitlines()[:4]
    assert [line.split()[0] for line in table] == ["trial", "0000", "0001", "0002"]
    assert "a field of 1 words" in table[0]  # as many as there is room for
    assert max(map(len, table)) <= 80 and "…" not in "".join(table)


def test_a_cause_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_search(tmp_path / "s", trials=2)
    write_trial(folder, state="failed", cause="\x1b[2J\x07[bold]gone[/nothing]")
    analyse(folder)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
    assert "[bold]gone[/nothing]" in out


def test_the_command_line_can_be_loaded_without_the_heavy_libraries() -> None:
    code = (
        "import sys, tune.report.analyse; "
        "assert not {'torch', 'ray', 'plotly', 'sklearn', 'scipy'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
