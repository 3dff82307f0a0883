"""A page in headless Chromium, in a frame of a wanted width, asked by a script."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDS_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH: apt-get install chromium"),
]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--allow-file-access-from-files --dump-dom"
)
# The page sits in a frame of the wanted width; headless windows have a least width of their own.
FRAME = """<!doctype html><iframe id=f style="width:WIDTHpx;height:2000px;border:0"></iframe>
<pre id=o></pre><script>
const frame = document.getElementById("f");
frame.onload = () => {  // all at once: the browser prints the page right after
  const view = frame.contentWindow, page = frame.contentDocument;
  const found = {width: view.innerWidth, page: page.documentElement.scrollWidth, out: [], cut: []};
  for (const part of page.querySelectorAll("details")) part.open = true;
  const name = (e) => e.tagName + "." + (e.getAttribute("class") || e.id);
  for (const e of page.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect(), style = view.getComputedStyle(e);
    if (!box.width || e.closest("svg *")) continue;
    if (box.right > view.innerWidth + 0.5 && !e.closest(".scroll")) found.out.push(name(e));
    const hides = style.overflowX !== "visible" && style.overflowX !== "auto";
    if (hides && e.scrollWidth > e.clientWidth + 1) found.cut.push(name(e));
  }
  const tip = page.getElementById("tip");
  const send = (kind, e, x, y) => {
    const box = e.getBoundingClientRect();
    e.dispatchEvent(new view.PointerEvent(kind,
      {clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true}));
  };
  const point = (e, x, y) => {
    e.scrollIntoView({block: "center"});
    send("pointermove", e, x, y);
    const place = tip.getBoundingClientRect();
    if (tip.hidden || place.left < 0 || place.right > view.innerWidth) return "not to be seen";
    return tip.textContent;
  };
  SCRIPT
  document.getElementById("o").textContent = JSON.stringify(found);
};
frame.src = "PAGE";
</script>"""


def probe(page: Path, width: int, script: str, folder: Path) -> dict[str, Any]:
    """What a browser finds in the file `page` at that width.

    `out` names what sticks out of the page and `cut` what is cut off; `script` adds to `found`,
    with `view`, `page`, `point(element, x, y)` (the tip that is told there; x, y in 0..1) and
    `send(kind, element, x, y)` at hand. `folder` takes files of the browser.
    """
    assert BROWSER is not None
    outer = folder / "probe.html"
    text = FRAME.replace("WIDTH", str(width)).replace("PAGE", page.as_uri())
    outer.write_text(text.replace("SCRIPT", script), encoding="utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [BROWSER, *FLAGS.split(), profile, "--window-size=1600,2000", outer.as_uri()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="o">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1].strip(), done.stderr[-2000:]
    told = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    content: dict[str, Any] = json.loads(told)
    return content


class Tags(HTMLParser):
    """All tags with their attributes, and the text outside of scripts and styles on one line."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and tag == self.open[-1]:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open:
            self.text += data
