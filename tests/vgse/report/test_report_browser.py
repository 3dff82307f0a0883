"""The report in a real browser, on a wide and on a narrow screen."""

import re
from pathlib import Path

import numpy as np
import pytest

from browser_page import NEEDS_BROWSER, probe
from report_run import make_run
from vgse.report import write_report
from vgse.report.similarity import centred_cosine

PROBE = """
found.pictures = page.images.length;
found.strip = point(page.querySelector(".strip"), 0.99, 0.5);
found.heat = point(page.querySelector(".heat img"), 0.001, 0.001);
found.cell = point(page.querySelector(".heat img"), 5.5 / 48, 0.5 / 48);
found.line = point(page.querySelector("svg[data-points]"), 0.99, 0.5);
found.bars = point(page.querySelector("svg[data-bars]"), 0.001, 0.5);
const svg = page.getElementById("tsne"), box = svg.viewBox.baseVal;
const mark = svg.querySelector("circle");
const at = (axis, size) => mark.getAttribute(axis) / size;
found.patch = point(svg, at("cx", box.width), at("cy", box.height));
found.lit = svg.querySelectorAll("g.k.on").length;
const picker = page.getElementById("tsne-class");
picker.value = "0";
picker.dispatchEvent(new view.Event("change"));
found.picked = svg.querySelectorAll("circle.on").length;
"""

pytestmark = NEEDS_BROWSER


def check_cell(report: Path, text: str) -> None:
    """The figure for words that the heatmap told is the cosine of those two classes."""
    first, second, told = re.fullmatch(
        r"(.+) \(seen\) and (.+) \(seen\)\nby pictures: .*\nby words: \D*?(-?[\d.]+)", text
    ).groups()  # type: ignore[union-attr]
    with np.load(report.parent / "class_embeddings.npz") as file:
        names = file["class_names"].tolist()
        cosine = centred_cosine(file["word_vectors"], file["seen"], scale=False)
    assert float(told) == pytest.approx(cosine[names.index(first), names.index(second)], abs=0.02)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    long_name = "a_class_with_a_name_that_no_one_would_give_unless_it_came_from_a_folder"
    run = make_run(
        tmp_path_factory.mktemp("browser") / "run", num_shapes=8, num_colours=6, num_shown=30,
        num_clusters=30, rename={"red disc": long_name, "yellow disc": "x" * 80},
    )  # fmt: skip
    return write_report(run)


@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_is_cut_and_everything_answers_the_pointer(
    report: Path, tmp_path: Path, width: int
) -> None:
    found = probe(report, width, PROBE, tmp_path)
    assert found["width"] == width and found["page"] <= width
    assert found["out"] == [] and found["cut"] == []
    assert found["pictures"] == 2 * 30 + 2
    assert re.fullmatch(r"[a-z_]+ [a-z]+|x{80}|a_class_\w+", found["strip"])
    assert "(seen)" in found["heat"] and "by words: \u2265" in found["heat"]
    check_cell(report, found["cell"])
    assert found["line"].startswith("epoch 3: ") and found["bars"].startswith("cluster ")
    assert "cluster " in found["patch"] and found["lit"] == 1
    assert found["picked"] >= 1


def test_the_probe_finds_what_sticks_out(report: Path, tmp_path: Path) -> None:
    page = report.read_text(encoding="utf-8")
    wide = '<section class="control"><div style="width:700px">wide</div></section>'
    broken = tmp_path / "broken.html"
    broken.write_text(page.replace("</main>", f"{wide}</main>"), encoding="utf-8")
    found = probe(broken, 390, PROBE, tmp_path)
    assert found["out"] == ["DIV."] and found["page"] > 390
