"""Pixels as inline data URIs: single pictures, strips, and sheets that many tags share."""

import base64
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
SHEET_COLUMNS = 32


def webp(image: Pixels, quality: int = 72) -> str:
    """A picture u8 [H, W, 3 or 4] as a data URI."""
    pixels = Image.fromarray(np.ascontiguousarray(image))
    return _data_uri(pixels, "webp", quality=quality, method=4)


def indexed_png(indices: Pixels, palette: Pixels) -> str:
    """A picture of palette indices u8 [H, W] with colours u8 [256, 3], lossless, as a data URI."""
    image = Image.fromarray(np.ascontiguousarray(indices)).convert("L")
    image.putpalette(palette.tobytes())
    return _data_uri(image, "png", optimize=True)


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def resize(pictures: Pixels, side: int) -> Pixels:
    """Pictures u8 [n, s, s, 3] no larger than `side` pixels; smaller ones stay as they are."""
    if len(pictures) == 0 or max(pictures.shape[1:3]) <= side:
        return pictures
    return np.stack(
        [
            np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.LANCZOS))
            for each in pictures
        ]
    )


def strip(pictures: Pixels, gap: int = 3) -> Pixels:
    """Pictures u8 [n, s, s, 3] side by side, a clear gap after each, u8 [s, n·(s + gap), 4]."""
    n, height, width, _ = pictures.shape
    cells = np.zeros((height, n, width + gap, 4), np.uint8)
    cells[:, :, :width, :3] = pictures.transpose(1, 0, 2, 3)
    cells[:, :, width:, :3] = cells[:, :, width - 1 : width, :3]  # black would bleed in WebP
    cells[:, :, :width, 3] = 255
    return cells.reshape(height, n * (width + gap), 4)


def sheet(pictures: Pixels, columns: int = SHEET_COLUMNS) -> Pixels:
    """Pictures u8 [n, s, s, 3] in rows of `columns`, the last row filled up with grey."""
    n, height, width, _ = pictures.shape
    rows = max(1, -(-n // columns))
    cells = np.full((rows * columns, height, width, 3), 128, np.uint8)
    cells[:n] = pictures
    grid = cells.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, 3)


@dataclass
class ClassPictures:
    """One picture a class, stored in one sheet that holds only the classes that were asked for."""

    pictures: Pixels | None  # u8 [C, s, s, 3]; without, a tile shows the class's first letter
    index: dict[str, int]  # row of each class name in `pictures`
    slots: dict[int, int] = field(default_factory=dict)

    def tile(self, name: str) -> dict[str, Any]:
        """What the macro `picture` shows of the class `name`."""
        row = self.index.get(name)
        if self.pictures is None or row is None or row >= len(self.pictures):
            return {"name": name, "letter": name[:1].upper() or "?"}
        slot = self.slots.setdefault(row, len(self.slots))
        return {"name": name, "letter": "", "x": slot % SHEET_COLUMNS, "y": slot // SHEET_COLUMNS}

    def style(self) -> str:
        """The rule with the sheet; call it after the last tile."""
        if self.pictures is None or not self.slots:
            return ""
        used = resize(self.pictures[list(self.slots)], 72)
        return f".pic:not(.none){{background-image:url({webp(sheet(used))})}}"
