"""The page of a search: one HTML file in the style of a run's report."""

import json
from collections.abc import Sequence
from pathlib import Path

import plotly.offline

from tune.report.axes import Axis, label_of, value_text
from tune.report.figures import figures
from tune.report.importance import MOST_TRIALS, NUM_CONTROLS, TOO_FEW, Importance
from tune.report.search_files import Search, finite
from tune.report.verdict import STATE_WORDS, causes, counts, headline, judge_ranks, winner_of
from tune.study import ranked
from vgse.files import written_whole
from vgse.report.page import page, render

MEASURES = {"zsl": "T1", "seen": "seen", "unseen": "unseen", "harmonic_mean": "H"}
SECTIONS = {
    "test": "Validation against test",
    "space": "What good trials have in common",
    "importance": "Which hyper-parameters matter",
    "slices": "One hyper-parameter at a time",
    "curves": "Learning curves",
    "trials": "All trials",
    "troubles": "What went wrong",
    "best": "Best configuration",
}


def write_page(
    folder: Path, search: Search, axes: Sequence[Axis], found: Importance | None
) -> Path:
    """Write `search.html` and return its path; the same search gives the same page."""
    shares = found.shares if found else {}
    falling = sorted(axes, key=lambda axis: -shares.get(axis.name, 0.0))
    drawn = figures(search, falling[::-1])
    tested = {name for row in search.final for name in row.test}
    measures = [name for name in MEASURES if name in tested] + sorted(tested - MEASURES.keys())
    best = ranked(search.trials)
    content = {
        "search": search,
        "axes": axes,
        "falling": falling,
        "label_of": label_of,
        "value_text": value_text,
        "words": STATE_WORDS,
        "facts": _facts(search),
        "headline": headline(search),
        "causes": causes(search.trials),
        "found": found,
        "limits": {"few": TOO_FEW, "most": MOST_TRIALS, "controls": NUM_CONTROLS},
        "ranking": best + [trial for trial in search.trials if trial not in best],
        "winner": winner_of(search),
        "opened": any(row.test or row.cause for row in search.final),
        "measures": {name: MEASURES.get(name, name) for name in measures},
        "base": next((r.test.get(search.tested_by) for r in search.final if r.is_default), None),
        "judgement": judge_ranks(search),
        "drawn": drawn.keys(),
        "figures": {name: json.loads(figure.to_json()) for name, figure in drawn.items()},
    }
    parts = {name: render(name, content, package="tune.report") for name in ("head", *SECTIONS)}
    sections = [(name, title, parts[name]) for name, title in SECTIONS.items()]
    title, library = f"VGSE search: {search.name}", plotly.offline.get_plotlyjs()
    here = Path(__file__).parent
    sheet, script = ((here / f"search.{kind}").read_text("utf-8") for kind in ("css", "js"))
    text = page(title, sheet, parts["head"], sections, script, library=library)
    path = Path(folder) / "search.html"
    with written_whole(path) as stream:
        stream.write(text.encode())
    return path


def _facts(search: Search) -> list[tuple[str, str, str]]:
    """(term, value, note) of what is known."""
    rows = [("Trials", f"{len(search.trials):,}", counts(search.trials))]
    spent = sum(len(trial.history) for trial in search.trials)
    full = sum(trial.epochs for trial in search.trials)
    if spent:
        saved = f"of {full:,} without early stopping" if full > spent else ""
        rows.append(("Epochs trained", f"{spent:,}", saved))
    if (speed := finite(search.timing.get("trials_per_minute"))) is not None:
        together = finite(search.timing.get("concurrent"))
        note = "" if together is None else f"{together:.0f} at the same time"
        rows.append(("Trials a minute", f"{speed:,.1f}", note))
    if (seconds := finite(search.timing.get("seconds"))) is not None:
        minutes = f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
        rows.append(("Wall time", f"{seconds:.0f} s" if seconds < 120 else minutes, ""))
    if sources := sorted({trial.source for trial in search.trials if trial.source}):
        rows.append(("Features from", " and ".join(sources), ""))
    return rows
