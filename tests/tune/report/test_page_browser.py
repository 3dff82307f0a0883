"""The page of a search in a real browser, on a wide and on a narrow screen."""

import re
from pathlib import Path
from typing import Any

import pytest

from browser_page import NEEDS_BROWSER, probe
from search_folder import DEFAULT, final_row, make_search, write_trial
from tune.report.analyse import analyse

pytestmark = NEEDS_BROWSER

EVIL = '<b>b</b><script>alert("x")</script>'
SCRIPT = """
const plot = (name) => page.querySelector(`[data-figure="${name}"]`);
const mouse = (kind, e, x, y) => {
  const where = {clientX: x, clientY: y, bubbles: true, view};
  e.dispatchEvent(new view.PointerEvent(kind.replace("mouse", "pointer"), where));
  e.dispatchEvent(new view.MouseEvent(kind, where));
};
const middle = (e) => {
  const box = e.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
};
const told = (figure, point) => {
  point.scrollIntoView({block: "center"});
  mouse("mousemove", figure.querySelector(".nsewdrag"), ...middle(point));
  return tip.hidden ? "not to be seen" : tip.textContent;
};
const slice = page.querySelector(".slice .plot");
found.dot = told(slice, slice.querySelector(".point.best"));
found.lit = page.querySelectorAll(".on").length;
const curves = plot("curves");
found.curve = told(curves, curves.querySelector(".best .point:last-child"));
found.tested = told(plot("tested"), plot("tested").querySelector(".point"));

const parallel = plot("parallel");
parallel.scrollIntoView({block: "center"});
const overlay = [...parallel.querySelectorAll("canvas")].pop();
const place = overlay.getBoundingClientRect();
tip.hidden = true;
for (let y = 0; y < place.height && !found.line; y += 1) {
  mouse("mousemove", overlay, place.left + place.width * 0.7, place.top + y);
  if (!tip.hidden) found.line = tip.textContent;
}
const shown = () => [...page.querySelectorAll(".trials tbody tr")].filter(
  (row) => view.getComputedStyle(row).display !== "none");
const brush = (axis, from, to) => {
  const grip = [...parallel.querySelectorAll(".axis-brush .background")].at(axis);
  const box = grip.getBoundingClientRect();
  const [x, y0, y1] = [middle(grip)[0], box.top + from * box.height, box.top + to * box.height];
  mouse("mousemove", grip, x, y0);
  mouse("mousedown", grip, x, y0);
  mouse("mousemove", view, x, (y0 + y1) / 2);
  mouse("mousemove", view, x, y1);
  mouse("mouseup", view, x, y1);
};
found.rows = shown().length;
brush(-1, 0.02, 0.3);
found.kept = page.getElementById("kept").textContent;
found.brushed = shown().length;
found.least = Math.min(...shown().map((row) => +row.cells[2].dataset.v));
found.lines = [...curves.querySelectorAll(".trace:not(.off)")].length;
brush(1, 0.02, 0.5);
found.both = shown().length;
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
found.texts = [...page.querySelectorAll("svg text")].map((text) => text.textContent);
found.strange = page.querySelectorAll("svg :is(a, b, script)").length;
found.small = [...page.querySelectorAll(".plot svg text")].filter((text) => text.textContent.trim()
  && parseFloat(view.getComputedStyle(text).fontSize) < 11 && !text.closest(".axis-extent")).length;
found.requests = view.performance.getEntriesByType("resource").map((entry) => entry.name);
found.tools = page.querySelectorAll(".modebar-btn").length;
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    finals = [final_row("default", 0.3, 0.25), final_row(EVIL, 0.39, 0.28)]
    folder = make_search(tmp_path_factory.mktemp("browser") / "search", trials=30, finals=finals)
    cause = "no space left on device: " + "a_path_without_any_blank/" * 8
    write_trial(folder, state="failed", cause=cause)
    return analyse(folder)


@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_is_cut_and_everything_answers_the_pointer(
    report: Path, tmp_path: Path, width: int
) -> None:
    found = probe(report, width, SCRIPT, tmp_path)
    assert found["width"] == width and found["page"] <= width
    assert found["out"] == [] and found["cut"] == []
    assert found["small"] == 0 and found["tools"] == 0
    assert found["dot"].startswith("trial 00") and "objective 3" in found["dot"]
    assert found["lit"] == 6  # the same trial in the slices, in the curves and in the table
    assert found["curve"] == found["dot"]
    assert found["tested"].startswith(f"{EVIL}\n")
    assert found["line"].startswith("trial 00")
    check_filter(found)
    check_sorting(found)
    assert any(text.startswith(EVIL[:13]) for text in found["texts"]) and found["strange"] == 0


def check_filter(found: dict[str, Any]) -> None:
    assert found["rows"] == 31 == found["all"]
    assert 0 < found["brushed"] < 31 and found["kept"] == f"{found['brushed']} of 31 trials kept"
    assert found["lines"] == found["brushed"]
    assert found["least"] > 0.2
    assert 0 < found["both"] < found["brushed"]


def check_sorting(found: dict[str, Any]) -> None:
    assert found["rising"] == [f"{number:04d}" for number in range(31)]
    scores = [float(value) for value in found["falling"] if value]
    assert len(scores) == 30 and scores == sorted(scores, reverse=True)
    assert found["falling"][-1] == "" and found["sorted"] == "descending"


def test_the_page_would_fetch_nothing_even_if_it_might(report: Path, tmp_path: Path) -> None:
    open_page = tmp_path / "open.html"
    text = report.read_text(encoding="utf-8")
    text, count = re.subn('<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert count == 1
    open_page.write_text(text, encoding="utf-8")
    found = probe(open_page, 1440, SCRIPT, tmp_path)
    assert found["dot"].startswith("trial 00")  # a control: the scripts ran
    assert found["requests"] == []


def test_names_of_hyper_parameters_and_choices_are_drawn_as_text(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "s", trials=0)
    for n in range(4):
        write_trial(folder, {**DEFAULT, EVIL: [EVIL, "<i>"][n % 2]}, [0.1 + n / 10])
    script = SCRIPT[: SCRIPT.index("const slice")] + SCRIPT[SCRIPT.index("found.texts") :]
    found = probe(analyse(folder), 1440, script, tmp_path)
    assert found["strange"] == 0
    assert {text.strip() for text in found["texts"]} >= {"<i>", EVIL[:13] + "…", EVIL[:14]}


def test_the_probe_would_see_a_page_that_sticks_out(report: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = report.read_text(encoding="utf-8").replace('class="scroll', 'class="wide')
    broken.write_text(text, encoding="utf-8")
    found = probe(broken, 390, "", tmp_path)
    assert found["page"] > 390 and found["out"]
