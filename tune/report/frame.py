"""What the charts of a search share: axes with ticks, and where a value is drawn."""

import math
from dataclasses import dataclass

from tune.report.axes import Axis, plain
from tune.report.search_files import Search
from vgse.report.charts import ticks
from vgse.report.page import esc


@dataclass(frozen=True)
class Frame:
    """A drawing with room for the figures at its left and bottom, in SVG units."""

    width: int
    height: int
    left: int
    right: int = 10
    top: int = 8
    bottom: int = 22

    def x(self, place: float) -> float:
        """Where 0..1 lies from left to right."""
        return self.left + place * (self.width - self.left - self.right)

    def y(self, place: float) -> float:
        """Where 0..1 lies from the bottom up."""
        return self.height - self.bottom - place * (self.height - self.top - self.bottom)

    def levels(self, axis: Axis, count: int = 4) -> str:
        """Lines across, each with its value at the left."""
        marks = ""
        for place, text in axis_ticks(axis, count):
            y = self.y(place)
            marks += (
                f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}" '
                f'y2="{y:.1f}"/><text x="{self.left - 6}" y="{y + 3.5:.1f}" text-anchor="end">'
                f"{text}</text>"
            )
        return marks

    def below(self, place: float, text: str, rise: int = 6) -> str:
        """A value under the drawing, `rise` above its lower edge; it does not stick out."""
        anchor = "end" if place > 0.93 else "middle"
        return (
            f'<text x="{self.x(place):.1f}" y="{self.height - rise}" text-anchor="{anchor}">'
            f"{esc(short(text))}</text>"
        )

    def svg(self, label: str, marks: str, ident: str = "") -> str:
        """The drawing with its name for those who cannot see it."""
        own = f' id="{ident}"' if ident else ""
        return (
            f'<svg{own} viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{esc(label)}">{marks}</svg>'
        )


def axis_ticks(axis: Axis, count: int = 4) -> list[tuple[float, str]]:
    """(place in 0..1, text) of some round values on the axis."""
    if axis.choices:
        return [(axis.place(value) or 0.0, plain(value)) for value in axis.choices]
    values = _powers(axis.low, axis.high) if axis.log else ticks(axis.low, axis.high, count)
    return [(axis.place(value) or 0.0, plain(value)) for value in values]


def objective_axis(search: Search) -> Axis:
    """The objective in percent, over the range that the trials reached."""
    scores = [100 * score for trial in search.trials for _, score in trial.curve]
    low, high = min(scores, default=0.0), max(scores, default=100.0)
    room = 0.04 * (high - low) or 1.0
    return Axis("objective", max(0.0, low - room), high + room, False)


def short(text: str, most: int = 12) -> str:
    """`text`, cut where it would run into its neighbour."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten in low..high; where there are fewer than three, multiples of them too."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5)):
        values = [m * 10.0**p for p in powers for m in factors]
        inside = [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        if len(inside) >= 3:
            break
    return inside if len(inside) >= 2 else sorted({low, high})
