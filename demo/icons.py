"""The drawings of the demo: which icons draw which noun, and their pictures on white."""

import io
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from resvg_py import svg_to_bytes

# An older drawing of the same designers, or the same drawing in another finish, is a relative:
# relatives of one icon never stand on both sides of the train/test split.
FAMILY = {
    "noto": "noto",
    "noto-v1": "noto",
    "twemoji": "twemoji",
    "emojione": "emojione",
    "fluent-emoji": "fluent",
    "fluent-emoji-flat": "fluent",
    "fxemoji": "fxemoji",
    "streamline-emojis": "streamline",
}
SIDE = 128
MARGIN = 8
MAX_DRAWINGS = 12
TWIN_DISTANCE = 4.0  # mean grey levels between 32 px thumbnails


@dataclass(frozen=True)
class Drawing:
    """One icon of one set, drawn for one class."""

    class_name: str
    icon_set: str
    icon: str

    @property
    def file_name(self) -> str:
        """`set__icon.png`: says in every shard whose drawing it is."""
        return f"{self.icon_set}__{self.icon}.png"

    @property
    def relatives(self) -> str:
        """The same for drawings that share their design."""
        return f"{FAMILY[self.icon_set]}/{canonical(self.icon)}"


def canonical(icon: str) -> str:
    """The name without hyphens and without a variant's number: `bird-2` and `bird` are one."""
    return re.sub(r"-\d$", "", icon).replace("-", "")


def read_nouns(path: Path) -> dict[str, tuple[list[str], set[str]]]:
    """Class name -> (canonical icon names in order, excluded `set/icon`)."""
    nouns: dict[str, tuple[list[str], set[str]]] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        name, colon, rest = line.partition(":")
        if not colon or not rest.split() or name in nouns:
            raise ValueError(
                f"{path}, line {number}: expected a new 'class: icon icon', got {line!r}"
            )
        tokens = rest.split()
        nouns[name] = (
            list(dict.fromkeys(canonical(t) for t in tokens if not t.startswith("!"))),
            {t[1:] for t in tokens if t.startswith("!")},
        )
    return nouns


@cache
def package_folder(node_modules: Path, icon_set: str) -> Path:
    """The folder of a set's package below `node_modules`."""
    folder = node_modules / "@iconify-json" / icon_set
    if not (folder / "icons.json").is_file():
        raise ValueError(f"{folder}: no icons.json; run npm install @iconify-json/{icon_set}")
    return folder


@cache
def _package(node_modules: Path, icon_set: str) -> dict[str, Any]:
    text = (package_folder(node_modules, icon_set) / "icons.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def find_drawings(node_modules: Path, nouns_file: Path) -> dict[str, list[Drawing]]:
    """Class -> its drawings, the first icon of every set before the second of any."""
    names: dict[str, dict[str, list[str]]] = {}
    for icon_set in FAMILY:
        names[icon_set] = {}
        for icon, data in sorted(_package(node_modules, icon_set)["icons"].items()):
            if not data.get("hidden"):
                names[icon_set].setdefault(canonical(icon), []).append(icon)

    found: dict[str, list[Drawing]] = {}
    owner: dict[Drawing, str] = {}
    for name, (icons, excluded) in read_nouns(nouns_file).items():
        ranked = []
        unused = set(excluded)
        unknown = [i for i in icons if not any(i in of_set for of_set in names.values())]
        if unknown:
            raise ValueError(f"{nouns_file}, class {name}: no set has {', '.join(unknown)}")
        for place, icon_set in enumerate(FAMILY):
            of_set = [i for icon in icons for i in names[icon_set].get(icon, [])]
            unused -= {f"{icon_set}/{i}" for i in of_set}
            kept = [i for i in of_set if f"{icon_set}/{i}" not in excluded]
            ranked += [(rank, place, Drawing(name, icon_set, i)) for rank, i in enumerate(kept)]
        if unused:
            raise ValueError(f"{nouns_file}, class {name}: no such icon to leave out: {unused}")
        found[name] = [drawing for _, _, drawing in sorted(ranked, key=lambda row: row[:2])]
        for drawing in found[name]:
            key = Drawing("", drawing.icon_set, drawing.icon)
            if owner.setdefault(key, name) != name:
                raise ValueError(f"{nouns_file}: {drawing.file_name} in {name} and {owner[key]}")
    return found


def render(node_modules: Path, drawing: Drawing) -> Image.Image:
    """RGB picture of SIDE px: the drawing fills it but for MARGIN px on its longer sides."""
    package = _package(node_modules, drawing.icon_set)
    data = package["icons"][drawing.icon]
    width, height = (data.get(k, package.get(k, 16)) for k in ("width", "height"))
    left, top = (data.get(k, package.get(k, 0)) for k in ("left", "top"))

    # Sets pad their icons differently, so measure what is drawn first, then draw just that.
    probe = _picture(data["body"], (left, top, width, height), 256, None)
    inked = np.argwhere(np.asarray(probe)[:, :, 3] > 16)
    (y0, x0), (y1, x1) = inked.min(0), inked.max(0) + 1
    unit = width / probe.width
    longer = max(y1 - y0, x1 - x0) * unit
    view = longer * SIDE / (SIDE - 2 * MARGIN)
    middle_x, middle_y = left + (x0 + x1) / 2 * unit, top + (y0 + y1) / 2 * unit
    box = (middle_x - view / 2, middle_y - view / 2, view, view)
    return _picture(data["body"], box, SIDE, "#ffffff").convert("RGB")


def _picture(
    body: str,
    box: tuple[float, float, float, float],
    width: int,
    background: str | None,
) -> Image.Image:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{box[2]}" height="{box[3]}" viewBox="{" ".join(f"{v:.6g}" for v in box)}">'
        f"{body}</svg>"
    )
    png = svg_to_bytes(svg_string=svg, background=background, width=width, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def thumbnail(picture: Image.Image) -> NDArray[np.float32]:
    """float32 [32, 32, 3], grey levels: enough to find the same drawing in two sets."""
    return np.asarray(picture.resize((32, 32), Image.Resampling.BOX), np.float32)


def without_twins(drawings: list[Drawing], pictures: dict[Drawing, Image.Image]) -> list[Drawing]:
    """The drawings, in order, without those that another one before them nearly equals."""
    kept: list[Drawing] = []
    for drawing in drawings:
        small = thumbnail(pictures[drawing])
        if all(np.abs(small - thumbnail(pictures[k])).mean() > TWIN_DISTANCE for k in kept):
            kept.append(drawing)
    return kept[:MAX_DRAWINGS]
