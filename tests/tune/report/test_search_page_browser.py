"""The page of a search in a real browser, on a wide and on a narrow screen."""

from pathlib import Path
from typing import Any

import pytest

from browser_page import NEEDS_BROWSER, probe
from search_folder import final_row, make_search, write_trial
from tune.report.page import write_page

pytestmark = NEEDS_BROWSER

SCRIPT = """
const parallel = page.getElementById("parallel"), wide = parallel.viewBox.baseVal;
const best = parallel.querySelector("path.best");
const [x, y] = best.getAttribute("d").split("L").pop().split(" ").map(Number);
found.line = point(parallel, x / wide.width, y / wide.height);
found.lit = page.querySelectorAll(".on").length;
const slice = page.querySelector(".slice svg"), box = slice.viewBox.baseVal;
const dot = slice.querySelector("circle.best");
found.dot = point(slice, dot.getAttribute("cx") / box.width, dot.getAttribute("cy") / box.height);
const curves = page.querySelector(".curves svg"), area = curves.viewBox.baseVal;
const end = curves.querySelector("path.best").getAttribute("d").split("L").pop().split(" ");
found.curve = point(curves, end[0] / area.width, end[1] / area.height);
found.scatter = point(page.querySelector("[data-tip]"), 0.5, 0.5);

const drag = (grip, from, to) => {
  send("pointerdown", grip, 0.5, from);
  send("pointermove", grip, 0.5, to);
  send("pointerup", grip, 0.5, to);
};
const shown = () => [...page.querySelectorAll(".trials tbody tr")].filter(
  (row) => view.getComputedStyle(row).display !== "none");
const kept = page.getElementById("kept");
found.rows = shown().length;
const grip = [...page.querySelectorAll(".grip")].pop();
drag(grip, 0, 0.3);
found.kept = kept.textContent;
found.brushed = shown().length;
found.least = Math.min(...shown().map((row) => +row.cells[2].dataset.v));
drag(page.querySelector(".grip"), 0, 0.5);
found.both = shown().length;
drag(page.querySelector(".grip"), 0.5, 0.5);
found.released = shown().length;
page.getElementById("all").click();
found.all = shown().length;

const rows = () => [...page.querySelectorAll(".trials tbody tr")];
const column = (n) => rows().map((row) => row.cells[n].dataset.v);
const heads = page.querySelectorAll(".trials thead button");
heads[0].click();
found.rising = column(0);
heads[2].click(); heads[2].click();
found.falling = column(2);
found.sorted = heads[2].closest("th").getAttribute("aria-sort");
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    finals = [final_row("default", 0.3, 0.25), final_row("0007", 0.39, 0.28)]
    folder = make_search(tmp_path_factory.mktemp("browser") / "search", trials=30, finals=finals)
    cause = "no space left on device: " + "a_path_without_any_blank/" * 8
    write_trial(folder, 30, state="failed", cause=cause)
    return write_page(folder)


@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_is_cut_and_everything_answers_the_pointer(
    report: Path, tmp_path: Path, width: int
) -> None:
    found = probe(report, width, SCRIPT, tmp_path)
    assert found["width"] == width and found["page"] <= width
    assert found["out"] == [] and found["cut"] == []
    assert found["line"].startswith("trial 00") and "objective 3" in found["line"]
    assert found["lit"] > 6  # the same trial in all charts and in the table
    assert found["dot"].splitlines()[0] == found["line"].splitlines()[0]
    assert found["curve"] == found["dot"]
    assert found["scatter"].startswith("default")
    check_filter(found)
    check_sorting(found)


def check_filter(found: dict[str, Any]) -> None:
    assert found["rows"] == 31 == found["all"]
    assert 0 < found["brushed"] < 31 and found["kept"] == f"{found['brushed']} of 31 trials kept"
    assert found["least"] > 0.2
    assert found["both"] < found["brushed"] == found["released"]


def check_sorting(found: dict[str, Any]) -> None:
    assert found["rising"] == [f"{number:04d}" for number in range(31)]
    scores = [float(value) for value in found["falling"] if value]
    assert len(scores) == 30 and scores == sorted(scores, reverse=True)
    assert found["falling"][-1] == "" and found["sorted"] == "descending"


def test_the_probe_would_see_a_page_that_sticks_out(report: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = report.read_text(encoding="utf-8").replace('class="scroll', 'class="wide')
    broken.write_text(text, encoding="utf-8")
    found = probe(broken, 390, "", tmp_path)
    assert found["page"] > 390 and found["out"]
