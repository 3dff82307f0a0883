"""Small charts as inline SVG."""

import math
from collections.abc import Sequence

from vgse.report.page import MINUS, attribute_json, esc, number

WIDTH, HEIGHT = 300, 132
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 20


def ticks(low: float, high: float, count: int = 3) -> list[float]:
    """Round figures inside low..high, about `count` of them; `low` alone where both are equal."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    base = 10 ** math.floor(math.log10(rough))
    step = min((m * base for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - rough))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def line_chart(
    title: str,
    note: str,
    points: Sequence[tuple[float, float]],
    *,
    limits: tuple[float, float] | None = None,
    reference: tuple[float, str] | None = None,
    digits: int = 2,
) -> str:
    """A curve through `points` (epoch, value), with its last value in the caption.

    `limits` fixes the value axis; `reference` is a dashed level with its name, told in the note.
    """
    values = [y for _, y in points] + ([reference[0]] if reference else [])
    low, high = limits or _room(min(values), max(values))
    first, last = points[0][0], points[-1][0]

    def place(x: float, y: float) -> tuple[float, float]:
        along = (x - first) / (last - first) if last > first else 0.5
        up = (y - low) / (high - low)
        return (
            LEFT + along * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    marks = ""
    for tick in ticks(low, high):
        if not digits and tick % 1:
            continue
        _, y = place(first, tick)
        marks += f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        marks += f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_tick(tick)}</text>'
    if reference:
        _, y = place(first, reference[0])
        marks += f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        note = f"{note}; dashed: {reference[1]}"
    if last > first:
        marks += f'<text x="{LEFT}" y="{HEIGHT - 5}">epoch {first:g}</text>'
    marks += f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">epoch {last:g}</text>'
    placed = [place(x, y) for x, y in points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    x, y = placed[-1]
    data = attribute_json([[round(a, 1), round(b, 1)] for a, b in placed])
    labels = attribute_json([f"epoch {a:g}: {number(b, digits)}" for a, b in points])
    return (
        f'<figure class="line"><figcaption><b>{esc(title)}</b> '
        f"<span>{number(points[-1][1], digits)}</span><small>{esc(note)}</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(title)} by epoch" '
        f'data-points="{data}" data-labels="{labels}">{marks}'
        f'<path d="{path}"/><circle class="end" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        '<circle class="cursor" r="4" visibility="hidden"/></svg></figure>'
    )


def usage_bars(shares: Sequence[float], labels: Sequence[str]) -> str:
    """Bars of `shares`, largest first, with a dashed level where all would be equal."""
    order = sorted(range(len(shares)), key=lambda k: -shares[k])
    top = max(*shares, 1e-12) if len(shares) > 1 else max(shares[0], 1e-12)
    step = 1000 / len(shares)
    gap = min(1.5, step / 5)
    bars = "".join(
        f'<rect x="{n * step:.2f}" y="{200 - 196 * shares[k] / top:.2f}" '
        f'width="{step - gap:.2f}" height="{max(0.6, 196 * shares[k] / top):.2f}"/>'
        for n, k in enumerate(order)
    )
    level = 200 - 196 / len(shares) / top
    names = attribute_json([labels[k] for k in order])
    return (
        '<svg class="usage" viewBox="0 0 1000 200" preserveAspectRatio="none" role="img" '
        f'aria-label="Share of patches in each cluster" data-bars="{names}">{bars}'
        f'<line class="level" x1="0" x2="1000" y1="{level:.1f}" y2="{level:.1f}"/></svg>'
    )


def _room(low: float, high: float) -> tuple[float, float]:
    space = 0.08 * (high - low) or max(abs(high) * 0.1, 1e-3)
    return low - space, high + space


def _tick(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("-", MINUS)
    return f"{value:g}".replace("-", MINUS)
