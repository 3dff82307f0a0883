"""The page of a search: one HTML file in the style of a run's report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tune.report.axes import Axis, axes_of, plain
from tune.report.charts import learning_curves, slices, validation_against_test
from tune.report.importance import (
    MOST_TRIALS,
    NUM_CONTROLS,
    TOO_FEW,
    Importance,
    importance,
)
from tune.report.parallel import NUM_SHADES, parallel_coordinates
from tune.report.search_files import Search, finite, load_search
from tune.report.tables import (
    STATE_WORDS,
    counts,
    final_table,
    subscript,
    trials_table,
    troubles,
)
from tune.report.verdict import headline, judge_ranks, winner_of
from vgse.files import written_whole
from vgse.report.page import data_block, esc, hero, number, page, percent


def write_page(folder: Path) -> Path:
    """Write `search.html` into the search folder and return its path.

    Raises ValueError for a folder without a search, and for a file that cannot be read.
    """
    search = load_search(folder)
    axes = axes_of(search)
    return save_page(folder, search, axes, importance(search.trials, axes))


def save_page(folder: Path, search: Search, axes: Sequence[Axis], found: Importance | None) -> Path:
    """Write `search.html`, from what was read and computed before, and return its path."""
    path = Path(folder) / "search.html"
    with written_whole(path) as stream:
        stream.write(render(search, axes, found).encode())
    return path


def render(search: Search, axes: Sequence[Axis], found: Importance | None) -> str:
    """The whole page; the same search gives the same text."""
    rising = sorted(axes, key=lambda axis: found.shares[axis.name] if found else 0)
    falling = sorted(axes, key=lambda axis: -found.shares[axis.name] if found else 0)
    sections = [
        ("test", "Validation against test", _final_section(search)),
        ("space", "What good trials have in common", _space_section(search, rising, found)),
        ("importance", "Which hyper-parameters matter", _importance_section(found, axes)),
        ("slices", "One hyper-parameter at a time", _slice_section(search, falling)),
        ("curves", "Learning curves", _curve_section(search)),
        ("trials", "All trials", _trials_section(search, axes)),
        ("troubles", "What went wrong", troubles(search)),
        ("best", "Best configuration", _best_section(search)),
    ]
    result = "".join(f"<p class=result>{esc(line)}</p>" for line in headline(search))
    top = hero("VGSE search", search.name, result, _facts(search))
    sheet, script = (_beside(name) for name in ("search.css", "search.js"))
    return page(f"VGSE search: {search.name}", sheet, top, sections, script)


def _facts(search: Search) -> list[tuple[str, str]]:
    states = ", ".join(f"{count:,} {word}" for word, count in counts(search.trials))
    spent = sum(len(trial.curve) for trial in search.trials)
    full = sum(trial.epochs for trial in search.trials)
    saved = f"<small>of {full:,} without early stopping</small>" if full > spent else ""
    rows = [("Trials", f"{len(search.trials):,} <small>{states}</small>")]
    rows.append(("Epochs trained", f"{spent:,} {saved}" if spent else ""))
    if (speed := finite(search.facts.get("trials_per_minute"))) is not None:
        together = finite(search.facts.get("concurrent"))
        side = "" if together is None else f"<small>{together:.0f} at the same time</small>"
        rows.append(("Trials a minute", f"{number(speed, 1)} {side}"))
    if (seconds := finite(search.facts.get("seconds"))) is not None:
        rows.append(("Wall time", _duration(seconds)))
    sources = sorted({trial.source for trial in search.trials if trial.source})
    rows.append(("Features from", esc(" and ".join(sources))))
    return [(term, value) for term, value in rows if value]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _final_section(search: Search) -> str:
    winner = winner_of(search)
    if winner is None or not any(row.test or row.cause for row in search.final):
        return _notice(
            "final.json",
            "The test images have not been opened. The end of a search trains its best "
            "configurations again and opens them once: <code>python -m tune search --search-id "
            f"{esc(search.name)} --resume --finalists 3</code>",
        )
    chart = ""
    shown = [r for r in search.final if search.objective in r.test and r.validation is not None]
    if len(shown) >= 2:
        chart = validation_against_test(shown, search.objective, winner)
    return (
        "<p>The search saw validation classes only, which played the unseen ones. Its best "
        "configurations and the default were then retrained on all seen classes, and each "
        "opened the test images once. The order is that of validation: to pick by the test column "
        "would be to choose on the test. Each is a single run, so that small differences may be "
        f"chance.</p>{final_table(search, winner)}"
        f'<div class="beside">{chart}<p>{esc(judge_ranks(search))}</p></div>'
    )


def _space_section(search: Search, axes: Sequence[Axis], found: Importance | None) -> str:
    if search.best is None or not axes:
        return _notice("trials", "No trial has an objective yet.")
    swatches = "".join(f'<i class="s{shade}"></i>' for shade in range(NUM_SHADES))
    default = any(row.is_default for row in search.final)
    dashed = '<span class="key dashed">default</span>' if default else ""
    return (
        "<p>Each line is a trial. Drag along an axis to keep the trials inside that range, here "
        "and in every chart and table below; click on the axis to let go."
        f"{' Hyper-parameters that matter more stand further right.' if found else ''}</p>"
        f"{parallel_coordinates(search, axes)}"
        f'<div class="legend shades"><span>lowest eighth</span>{swatches}<span>highest eighth'
        f'</span><span class="key best">best</span>{dashed}<span class="kept">'
        '<output id="kept"></output> '
        '<button type="button" id="all" hidden>Show all</button></span></div>'
        + data_block("search-data", _data(search, axes))
    )


def _data(search: Search, axes: Sequence[Axis]) -> dict[str, Any]:
    """For each trial its tip."""
    tips = []
    for trial in search.trials:
        lines = [f"trial {trial.name}, {STATE_WORDS[trial.state]}"]
        if trial.objective is not None:
            lines.append(f"objective {percent(trial.objective)}% at epoch {trial.epoch}")
        lines += [
            f"{axis.label} {plain(trial.params[axis.name])}"
            for axis in reversed(axes)
            if axis.name in trial.params
        ]
        tips.append("\n".join(lines))
    return {"tips": tips}


def _importance_section(found: Importance | None, axes: Sequence[Axis]) -> str:
    if found is None:
        return (
            f'<p class="notice">Too few trials: importances need at least {TOO_FEW} with an '
            "objective and all hyper-parameters, not all alike.</p>"
        )
    labels = {axis.name: axis.label for axis in axes}
    top = max(found.floor, *found.shares.values(), 1e-9)
    items = ""
    for name, share in found.shares.items():
        kind = "signal" if share > found.floor else "noise"
        items += (
            f'<li class="{kind}" style="--v:{100 * share / top:.1f}%"><span>'
            f"{subscript(labels[name])}<small>{esc(name)}</small></span><i></i><b>{percent(share)}</b></li>"
        )
    rest = max(0.0, 1 - sum(found.shares.values()))
    most = f", {MOST_TRIALS} of them at most" if found.num_trials == MOST_TRIALS else ""
    return (
        "<p>The share of the objective's variance over the whole space, in percent, that a "
        "hyper-parameter explains by itself (fANOVA). "
        f"{percent(rest)}% is left to combinations and to chance. A bar that ends before the "
        f"dashed line, {percent(found.floor)}%, cannot be told from chance: so far went the best "
        f"of {NUM_CONTROLS} copies of hyper-parameters that were shuffled among trials of about "
        "the same time. A bar a little beyond it is a hint, not a proof: a search draws its "
        "hyper-parameters closer together all at once.</p>"
        f'<ol class="importance" style="--floor:{100 * found.floor / top:.1f}%">{items}</ol>'
        f"<p><small>From {found.num_trials} trials{most}. Failed trials are left out. One that "
        "was stopped early counts with its last objective, raised by the factor by which the "
        "others grew from that epoch on.</small></p>"
    )


def _slice_section(search: Search, axes: Sequence[Axis]) -> str:
    if search.best is None:
        return _notice("trials", "No trial has an objective yet.")
    return (
        "<p>The last objective of each trial in percent, on validation classes. Full dots "
        f"finished, faint ones were stopped early and so had less time.</p>{slices(search, axes)}"
    )


def _curve_section(search: Search) -> str:
    if not any(trial.curve for trial in search.trials):
        return _notice("trials", "No trial has an objective yet.")
    return (
        "<p>Where a thin line ends, its trial was stopped: it was behind others at that epoch.</p>"
        + learning_curves(search)
    )


def _trials_section(search: Search, axes: Sequence[Axis]) -> str:
    if not search.trials:
        return _notice("trials", "No trial has been written yet.")
    return f"<p>A click on a heading sorts.</p>{trials_table(search, axes)}"


def _best_section(search: Search) -> str:
    if not search.best_text:
        return _notice("best.yaml", "The search writes it when its first trial has finished.")
    return (
        "<p>This file trains it: <code>python -m distributed train --config best.yaml</code></p>"
        '<div class="copied"><button type="button" data-copy="best-yaml">Copy</button>'
        f'<pre class="scroll" id="best-yaml">{esc(search.best_text)}</pre></div>'
    )


def _notice(what: str, html: str) -> str:
    return f'<p class="notice"><code>{esc(what)}</code> {html}</p>'


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
