"""The figures of a search, by Optuna and plotly; the page's script puts its colours in."""

import html
import math
from collections.abc import Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scipy.stats import rankdata

from tune.report.axes import Axis, label_of, value_text
from tune.report.importance import study_of
from tune.report.search_files import FinalRow, Search
from tune.report.verdict import tested_rows, winner_of
from tune.study import DEFAULT, TrialRecord

ACCENT, BEST, MUTED = "var(--accent)", "var(--best)", "var(--muted)"


def figures(search: Search, axes: Sequence[Axis]) -> dict[str, go.Figure]:
    """All figures by name; points carry the name of their trial as customdata."""
    found = {}
    if len(rows := tested_rows(search)) > 1:
        found["tested"] = validation_against_test(rows, search)
    measured = [trial for trial in search.trials if trial.history]
    if measured:
        study = _study(measured, axes)
        found["curves"] = learning_curves(search, measured, study)
        tried = {name for trial in study.trials for name in trial.params}
        found |= {
            f"slice {a.name}": slice_plot(measured, study, a) for a in axes if a.name in tried
        }
        found["parallel"] = parallel_coordinates(search, measured, axes)
    for figure in found.values():
        figure.update_layout(template="none", title=None)
    return found


def learning_curves(
    search: Search, measured: Sequence[TrialRecord], study: optuna.Study
) -> go.Figure:
    """The objective by epoch, one line a trial; those that finished above, the best on top."""
    figure = optuna.visualization.plot_intermediate_values(study)
    heights = {}
    for trial, trace in zip(measured, figure.data, strict=True):
        names = [trial.name] * len(trace.x)
        trace.update(customdata=names, hoverinfo="none", marker={"maxdisplayed": 0})
        heights[trial.name] = (trial is search.best, trial.state == "finished")
    figure.data = sorted(figure.data, key=lambda trace: heights[trace.customdata[0]])
    longest = max(len(trace.x) for trace in figure.data)
    step = 1 if longest <= 12 else None  # else plotly would number halves of epochs
    figure.update_layout(hoverdistance=40, xaxis={"dtick": step, "title": "epoch"}, yaxis_title="")
    return figure


def slice_plot(measured: Sequence[TrialRecord], study: optuna.Study, axis: Axis) -> go.Figure:
    """The objective against one hyper-parameter."""
    figure = optuna.visualization.plot_slice(study, [axis.name], target_name="")
    trace = figure.data[0]
    trace.customdata = [measured[number].name for number in trace.marker.color]
    trace.update(hoverinfo="none", marker={"color": ACCENT, "showscale": False, "size": 6.5})
    figure.update_layout(xaxis_title="", yaxis_nticks=4)
    if axis.choices:
        labels = [_text(value_text(choice)) for choice in axis.choices]
        figure.update_xaxes(tickmode="array", tickvals=list(range(len(labels))), ticktext=labels)
    elif axis.log:
        ticks = {10**place: text for place, text in _decades(axis.low, axis.high) if text}
        figure.update_xaxes(tickvals=list(ticks), ticktext=list(ticks.values()))
    return figure


def parallel_coordinates(
    search: Search, measured: Sequence[TrialRecord], axes: Sequence[Axis]
) -> go.Figure:
    """One line a trial through its hyper-parameters to its objective, coloured by rank: a search
    that works ends with most trials close to the best. Optuna's own figure has no brushes."""
    trials = [
        trial
        for trial in measured
        if all(axis.place(trial.params.get(axis.name)) is not None for axis in axes)
    ]
    scores = [100 * (trial.objective or 0) for trial in trials]
    ranks = (rankdata(scores, "min") - 1) / max(1, len(scores) - 1)
    dimensions = [_dimension(axis, [trial.params[axis.name] for trial in trials]) for axis in axes]
    dimensions.append({"label": "objective, %", "values": scores})
    colours = [
        1.2 if trial is search.best else 1.1 if trial.name == DEFAULT else float(rank)
        for trial, rank in zip(trials, ranks, strict=True)
    ]
    names = [trial.name for trial in trials]
    trace = go.Parcoords(customdata=names, dimensions=dimensions, line={"color": colours})
    return go.Figure(trace, {"margin": {"b": 20, "l": 50, "r": 50, "t": 56}})


def validation_against_test(rows: Sequence[FinalRow], search: Search) -> go.Figure:
    """A point for each of `rows`, which all have both results."""
    across = [100 * (row.validation or 0) for row in rows]
    up = [100 * row.test[search.tested_by] for row in rows]
    winner = winner_of(search)
    colours = [BEST if row is winner else MUTED if row.is_default else ACCENT for row in rows]
    symbols = ["diamond" if row.is_default else "circle" for row in rows]
    sides = ["middle left", "middle right"] * len(rows)  # in turn, or close names would overlap
    heights = rankdata(up, "ordinal")
    room = max(max(across) - min(across), 1.0) / 3
    trace = go.Scatter(
        x=across,
        y=up,
        cliponaxis=False,
        customdata=[row.name for row in rows],
        hoverinfo="none",
        marker={"color": colours, "size": 11, "symbol": symbols},
        mode="markers+text",
        text=[_text(row.name) for row in rows],
        textposition=[sides[int(height)] for height in heights],
    )
    wide = {"range": [min(across) - room, max(across) + room], "title": "validation, %"}
    return go.Figure(trace, {"margin": {"b": 44, "l": 52}, "xaxis": wide, "yaxis_title": "test, %"})


def _study(trials: Sequence[TrialRecord], axes: Sequence[Axis]) -> optuna.Study:
    """A study of measured trials, in percent; all as complete ones, Optuna draws no others."""
    distributions = {
        axis.name: CategoricalDistribution(axis.choices)
        if axis.choices
        else FloatDistribution(axis.low, axis.high, log=axis.log)
        for axis in axes
    }
    rows = [
        (
            {name: value for name, value in trial.params.items() if value is not None},
            100 * (trial.objective or 0),
            {row["epoch"]: 100 * row["objective"] for row in trial.history},
        )
        for trial in trials
    ]
    return study_of(rows, distributions)


def _dimension(axis: Axis, values: Sequence[Any]) -> dict[str, Any]:
    head, _, tail = _text(label_of(axis.name)).partition("_")
    label = f"{head}<sub>{tail}</sub>" if tail else head
    if axis.choices:
        return {
            "label": label,
            "values": [axis.choices.index(value) for value in values],
            "range": [-0.2, len(axis.choices) - 0.8],
            "tickvals": list(range(len(axis.choices))),
            "ticktext": _unlike([value_text(choice)[:14] for choice in axis.choices]),
        }
    if not axis.log:
        return {"label": label, "values": values, "range": [axis.low, axis.high]}
    places, texts = zip(*_decades(axis.low, axis.high), strict=True)
    return {
        "label": f"{label} (log)",
        "values": [math.log10(value) for value in values],
        "range": [math.log10(axis.low), math.log10(axis.high)],
        "tickvals": places,
        "ticktext": _unlike(texts),
    }


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """(log10, text) of 1, 2 … 9 times the powers of ten in low..high; most texts are empty."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{digit}e{power}") for power in powers for digit in range(1, 10)]
    values = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    shown = "1" if high / low > 99 else "125"
    return [(math.log10(v), value_text(v) if f"{v:e}"[0] in shown else "") for v in values]


def _unlike(texts: Sequence[str]) -> list[str]:
    """`texts` that differ by blanks: plotly draws two equal ones at one place."""
    return [text + " " * n for n, text in enumerate(texts, 1)]


def _text(text: str) -> str:
    """A stranger's text, cut, without the tags that plotly would take for its own."""
    text = text if len(text) <= 14 else f"{text[:13]}…"
    return html.escape(text.encode("utf-8", "replace").decode(), quote=False)
