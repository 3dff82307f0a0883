"""The table of a repeat: means, deviations and paired differences of known numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tune.report.spread import headline, read_spread, spread_table, to_dict, write_spread

# T1 of two models in three runs; what all rows of a run share is large, and cancels in pairs.
RUNS = {
    "words": [[0.10, 0.12], [0.30, 0.32], [0.20, 0.22]],
    "paper_smo": [[0.11, 0.13], [0.30, 0.32], [0.20, 0.22]],
    "smo": [[0.15, 0.17], [0.36, 0.38], [0.27, 0.29]],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        run = tmp_path / f"split-{number}"
        run.mkdir()
        rows = [
            {
                "name": name,
                "label": f"row {name} <b>",
                "group": "ours",
                "results": {
                    model: {"zsl": t1, "harmonic_mean": t1 / 2}
                    for model, t1 in zip(("eszsl", "sje"), values[number], strict=True)
                },
            }
            for name, values in RUNS.items()
        ]
        if number:  # a row that not all have is left out
            rows.append({**rows[0], "name": "knowledge"})
        content = {"models": ["eszsl", "sje"], "chance": 0.05, "rows": rows}
        content["clusters"] = {"nmi": 0.3 + number / 10}
        (run / "evaluation.json").write_text(json.dumps(content))
        (run / "relations.json").write_text(json.dumps({"line": "words 1, ridge 0.1"}))
    (tmp_path / "repeat.yaml").write_text("splits: 3\n")
    return tmp_path


NAMES = ["split-0", "split-1", "split-2"]


def test_means_and_deviations_are_those_of_the_runs(folder: Path) -> None:
    content = to_dict(read_spread(folder, NAMES, "split"))
    assert content["clusters"]["nmi"]["mean"] == pytest.approx(0.4)
    rows = content["rows"]
    assert [row["name"] for row in rows] == list(RUNS)
    means = np.array(RUNS["smo"]).mean(1)
    assert rows[2]["zsl"]["values"] == pytest.approx(means)
    assert rows[2]["zsl"]["mean"] == pytest.approx(means.mean())
    assert rows[2]["zsl"]["std"] == pytest.approx(means.std(ddof=1))
    assert rows[2]["harmonic_mean"]["mean"] == pytest.approx(means.mean() / 2)
    assert rows[2]["models"]["sje"]["zsl"]["mean"] == pytest.approx((0.17 + 0.38 + 0.29) / 3)


def test_differences_are_paired_by_run(folder: Path) -> None:
    rows = {row["name"]: row for row in to_dict(read_spread(folder, NAMES, "split"))["rows"]}
    found = rows["smo"]["minus_words"]["zsl"]
    gaps = np.array([0.05, 0.06, 0.07])
    assert found["mean"] == pytest.approx(0.06)
    assert found["standard_error"] == pytest.approx(gaps.std(ddof=1) / np.sqrt(3))
    # Far below that of unpaired runs.
    assert found["standard_error"] < rows["smo"]["zsl"]["std"] / 5
    assert rows["words"]["minus_words"]["zsl"] is None


def test_the_headline_says_what_is_no_clear_difference(folder: Path) -> None:
    lines = headline(read_spread(folder, NAMES, "split"))
    assert lines[0] == "VGSE-SMO minus word vectors, T1: +6.0 ± 0.6 points."
    for number in range(3):
        path = folder / f"split-{number}" / "evaluation.json"
        content = json.loads(path.read_text())
        for row in content["rows"]:
            if row["name"] == "smo":
                row["results"]["eszsl"]["zsl"] = row["results"]["sje"]["zsl"] = 0.2
        path.write_text(json.dumps(content))
    assert "no clear difference" in headline(read_spread(folder, NAMES, "split"))[0]


def test_the_table_of_the_terminal_fits_its_width(folder: Path) -> None:
    console = Console(width=80, record=True)
    spread = read_spread(folder, NAMES, "split")
    for measure in ("zsl", "harmonic_mean"):
        console.print(spread_table(spread, measure))
    text = console.export_text()
    assert "27.0 ± 10.5" in text and "+6.0 ± 0.6" in text
    assert "13.5 ± 5.3" in text and "+3.0 ± 0.3" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_page_names_every_run_and_what_failed(folder: Path) -> None:
    page = write_spread(folder, read_spread(folder, NAMES, "split"), {"split-3": "out of <memory>"})
    text = page.read_text()
    assert all(f'href="{name}/report.html"' in text for name in NAMES)
    assert "out of &lt;memory&gt;" in text and "row smo &lt;b&gt;" in text
    assert json.loads((folder / "repeat.json").read_text())["failed"] == {
        "split-3": "out of <memory>"
    }
