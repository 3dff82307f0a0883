"""Learning curves, slices and the scatter of a search; a mark carries its trial as data-t."""

import math
from collections.abc import Sequence

from tune.report.axes import Axis
from tune.report.frame import Frame, axis_ticks, objective_axis, short
from tune.report.search_files import FinalRow, Search, Trial
from tune.report.tables import subscript
from vgse.report.charts import ticks
from vgse.report.page import esc, percent


def learning_curves(search: Search) -> str:
    """The objective by epoch, one line a trial; those that finished above, the best on top."""
    frame = Frame(640, 290, 38, 12, top=10, bottom=26)
    score = objective_axis(search)
    measured = [t for t, trial in enumerate(search.trials) if trial.curve]
    first = min(search.trials[t].curve[0][0] for t in measured)
    last = max(search.trials[t].epoch for t in measured)

    def along(epoch: int) -> float:
        return (epoch - first) / (last - first) if last > first else 0.5

    marks = frame.levels(score)
    whole = [int(epoch) for epoch in ticks(first, last, 5) if epoch % 1 == 0]
    apart = (last - first) / 12  # or the figures would touch
    whole = [epoch for epoch in whole if epoch - first > apart and last - epoch > apart]
    for epoch in sorted({first, last, *whole}):
        marks += frame.below(along(epoch), str(epoch), 7)
    best = search.best

    def height(t: int) -> tuple[bool, bool]:
        trial = search.trials[t]
        return trial is best, trial.state == "finished"

    for t in sorted(measured, key=height):
        trial = search.trials[t]
        points = [
            f"{frame.x(along(epoch)):.1f} {frame.y(score.place(100 * value) or 0):.1f}"
            for epoch, value in trial.curve
        ]
        marks += f'<path class="{_kind(trial, best)}" data-t="{t}" d="M{"L".join(points)}"/>'
        if trial.state != "finished" or len(points) == 1:
            x, y = points[-1].split()
            kind = _kind(trial, best)
            marks += f'<circle class="{kind}" data-t="{t}" cx="{x}" cy="{y}" r="1.6"/>'
    drawing = frame.svg("Objective of every trial by epoch", marks, "curves-chart")
    return (
        '<figure class="line curves"><figcaption><b>Objective by epoch</b><small>on validation '
        f"classes, %</small></figcaption>{drawing}</figure>"
    )


def slices(search: Search, axes: Sequence[Axis]) -> str:
    """Small multiples: the objective against each hyper-parameter."""
    return f'<div class="charts">{"".join(_slice(search, axis) for axis in axes)}</div>'


def _slice(search: Search, axis: Axis) -> str:
    frame = Frame(300, 160, 34)
    score = objective_axis(search)
    marks = frame.levels(score, 3)
    marks += "".join(frame.below(place, text) for place, text in axis_ticks(axis))
    best = search.best
    for t, trial in sorted(enumerate(search.trials), key=lambda each: each[1] is best):
        place = axis.place(trial.params.get(axis.name))
        if place is None or trial.objective is None:
            continue
        if axis.choices:  # points of one choice side by side
            place += (((t * 0.618034) % 1) - 0.5) * 0.6 / len(axis.choices)
        x, y = frame.x(place), frame.y(score.place(100 * trial.objective) or 0)
        size = 4.5 if trial is best else 2.6
        marks += (
            f'<circle class="{_kind(trial, best)}" data-t="{t}" cx="{x:.1f}" cy="{y:.1f}" '
            f'r="{size}"/>'
        )
    hint = f"{axis.name}{', log scale' if axis.log else ''}"
    return (
        f'<figure class="line slice"><figcaption><b>{subscript(axis.label)}</b>'
        f"<small>{esc(hint)}</small></figcaption>"
        f"{frame.svg(f'Objective by {axis.name}', marks)}</figure>"
    )


def validation_against_test(rows: Sequence[FinalRow], measure: str, winner: FinalRow) -> str:
    """A point for each of `rows`, which all have both figures, on axes of its own."""
    frame = Frame(360, 300, 40, 16, top=14, bottom=40)
    points = [(100 * (row.validation or 0), 100 * row.test[measure], row) for row in rows]
    across = _roomy("validation", [x for x, _, _ in points])
    up = _roomy("test", [y for _, y, _ in points])
    marks = frame.levels(up)
    marks += "".join(frame.below(place, text, 22) for place, text in axis_ticks(across))
    marks += frame.below(1.0, "validation", 5)
    lowest = {-8: math.inf, 8: math.inf}  # of the labels to the left and right of their points
    for x_value, y_value, row in sorted(points, key=lambda point: point[1]):
        x, y = frame.x(across.place(x_value) or 0), frame.y(up.place(y_value) or 0)
        side, anchor = (-8, "end") if x > frame.width * 0.6 else (8, "start")
        lowest[side] = min(y + 4, lowest[side] - 13)
        tip = f"{row.name}\nvalidation {percent(row.validation)}%\ntest {percent(y_value / 100)}%"
        kind = "best" if row is winner else "finished"
        shape = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        if row.is_default:
            shape = f'<path class="default" d="M{x - 6:.1f} {y:.1f}l6 -6l6 6l-6 6z"/>'
        marks += (
            f'<g class="dot" data-tip="{esc(tip)}">{shape}<text x="{x + side:.1f}" '
            f'y="{lowest[side]:.1f}" text-anchor="{anchor}">{esc(short(row.name, 14))}</text></g>'
        )
    return (
        '<figure class="line scatter"><figcaption><b>Test against validation</b><small>in '
        f"percent, up: test</small></figcaption>{frame.svg('Test by validation', marks)}</figure>"
    )


def _kind(trial: Trial, best: Trial | None) -> str:
    return f"t {trial.state}" + (" best" if trial is best else "")


def _roomy(name: str, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 1.0
    return Axis(name, low - room, high + room, False)
