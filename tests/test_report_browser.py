"""The report in a real browser, on a wide and on a narrow screen."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_run import make_run

from vgse.report import write_report
from vgse.report.similarity import centred_cosine

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--allow-file-access-from-files --dump-dom"
)
# The page sits in a frame of the wanted width; headless windows have a least width of their own.
PROBE = """<!doctype html><iframe id=f style="width:%dpx;height:2000px;border:0"></iframe><pre id=o>
</pre><script>
const frame = document.getElementById("f");
frame.onload = () => {  // all at once: the browser prints the page right after
  const view = frame.contentWindow, page = frame.contentDocument;
  const found = {width: view.innerWidth, page: page.documentElement.scrollWidth, out: [], cut: []};
  for (const part of page.querySelectorAll("details")) part.open = true;
  found.pictures = page.images.length;
  const name = (e) => e.tagName + "." + (e.getAttribute("class") || e.id);
  for (const e of page.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect(), style = view.getComputedStyle(e);
    if (!box.width || e.closest("svg *")) continue;
    if (box.right > view.innerWidth + 0.5 && !e.closest(".scroll")) found.out.push(name(e));
    const hides = style.overflowX !== "visible" && style.overflowX !== "auto";
    if (hides && e.scrollWidth > e.clientWidth + 1) found.cut.push(name(e));
  }
  const tip = page.getElementById("tip");
  const point = (e, x, y) => {
    e.scrollIntoView({block: "center"});
    const box = e.getBoundingClientRect();
    e.dispatchEvent(new view.PointerEvent("pointermove",
      {clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true}));
    const place = tip.getBoundingClientRect();
    if (tip.hidden || place.left < 0 || place.right > view.innerWidth) return "not to be seen";
    return tip.textContent;
  };
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
  document.getElementById("o").textContent = JSON.stringify(found);
};
frame.src = "%s";
</script>"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH: apt-get install chromium"),
]


def probe(report: Path, width: int, folder: Path) -> dict[str, Any]:
    """What a browser finds in the page at that width."""
    assert BROWSER is not None
    outer = folder / "probe.html"
    outer.write_text(PROBE % (width, report.as_uri()), encoding="utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [BROWSER, *FLAGS.split(), profile, "--window-size=1600,2000", outer.as_uri()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="o">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1].strip(), done.stderr[-2000:]
    text = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    content: dict[str, Any] = json.loads(text)
    return content


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
    found = probe(report, width, tmp_path)
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
    found = probe(broken, 390, tmp_path)
    assert found["out"] == ["DIV."] and found["page"] > 390
