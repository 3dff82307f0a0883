"""Parallel coordinates: every trial as a line through its hyper-parameters and its objective."""

from bisect import bisect_left
from collections.abc import Sequence

from tune.report.axes import Axis
from tune.report.frame import Frame, axis_ticks, objective_axis, short
from tune.report.search_files import Search, Trial
from vgse.report.page import esc

NUM_SHADES = 8
STEP = 116


def parallel_coordinates(search: Search, axes: Sequence[Axis]) -> str:
    """One line a trial through its place on every axis; the objective stands at the right.

    A trial's line carries its number as data-t; the faintest are drawn first, the default last.
    """
    columns = [*axes, objective_axis(search)]
    width = STEP * len(columns)
    frame = Frame(width, 400, STEP // 2, STEP // 2, top=50, bottom=18)
    order = sorted(range(len(search.trials)), key=lambda t: search.trials[t].objective or -1.0)
    shade = shades(search.trials)
    marks = ""
    for t in order:
        trial = search.trials[t]
        if trial.objective is None:
            continue
        kind = f"s{shade[t]} {trial.state}" + (" best" if trial is search.best else "")
        path = _path(frame, _places(columns, trial.params, trial.objective))
        marks += f'<path class="t {kind}" data-t="{t}" d="{path}"/>'
    for row in search.final:
        if row.is_default:
            path = _path(frame, _places(columns, row.params, row.validation))
            marks += f'<path class="default" d="{path}"/>'
    marks += "".join(_rule(frame, axis, column) for column, axis in enumerate(columns))
    return (
        f'<div class="scroll"><svg id="parallel" viewBox="0 0 {width} {frame.height}" '
        f'style="min-width:{round(0.82 * width)}px" data-top="{frame.top}" '
        f'data-bottom="{frame.height - frame.bottom}" role="img" '
        f'aria-label="Hyper-parameters and objective of every trial">{marks}</svg></div>'
    )


def shades(trials: Sequence[Trial]) -> list[int]:
    """A shade in 0..NUM_SHADES - 1 for each trial, by its rank; -1 for one without objective.

    By rank and not by value: a search that works ends with most trials close to the best.
    """
    scores = sorted(trial.objective for trial in trials if trial.objective is not None)
    found = []
    for trial in trials:
        below = 0 if trial.objective is None else bisect_left(scores, trial.objective)
        shade = below * NUM_SHADES // max(1, len(scores))
        found.append(-1 if trial.objective is None else shade)
    return found


def _places(
    columns: Sequence[Axis], params: dict[str, object], objective: float | None
) -> list[float | None]:
    *axes, score = columns
    percent = None if objective is None else 100 * objective
    return [*(axis.place(params.get(axis.name)) for axis in axes), score.place(percent)]


def _at(column: int) -> int:
    return STEP // 2 + column * STEP


def _path(frame: Frame, places: Sequence[float | None]) -> str:
    """A line that breaks where a place is not known."""
    parts, pen_down = [], False
    for column, place in enumerate(places):
        if place is not None:
            parts.append(f"{'L' if pen_down else 'M'}{_at(column)} {frame.y(place):.1f}")
        pen_down = place is not None
    return "".join(parts)


def _rule(frame: Frame, axis: Axis, column: int) -> str:
    """An axis with its name, ticks, and the area that takes a drag."""
    x, low, high = _at(column), frame.y(0), frame.y(1)
    marks = f'<line class="rule" x1="{x}" x2="{x}" y1="{high:.0f}" y2="{low:.0f}"/>'
    for place, text in axis_ticks(axis):
        y = frame.y(place)
        marks += f'<line class="rule" x1="{x - 4}" x2="{x}" y1="{y:.1f}" y2="{y:.1f}"/>'
        marks += f'<text class="tick" x="{x + 5}" y="{y + 4:.1f}">{esc(short(text))}</text>'
    name = _symbol(short(axis.label, 16)) + (", %" if axis.name == "objective" else "")
    return (
        f'{marks}<g class="axis" data-x="{x}"><title>{esc(axis.name)}</title>'
        f'<text class="name" x="{x}" y="20" text-anchor="middle">{name}</text>'
        f'<text class="scale" x="{x}" y="36" text-anchor="middle">{"log" if axis.log else ""}'
        f'</text><rect class="grip" x="{x - 20}" y="{high - 10:.0f}" width="40" '
        f'height="{low - high + 20:.0f}"/>'
        f'<rect class="brush" x="{x - 9}" y="0" width="18" height="0" visibility="hidden"/></g>'
    )


def _symbol(label: str) -> str:
    """A label as SVG text, with what follows an underscore as a subscript."""
    head, _, tail = label.partition("_")
    return f'{esc(head)}<tspan class="sub" dy="4">{esc(tail)}</tspan>' if tail else esc(label)
