"""The tables of a search: its trials, what went wrong, and validation beside test."""

from collections import Counter
from collections.abc import Sequence

from tune.report.axes import Axis, plain
from tune.report.search_files import FinalRow, Search, Trial
from vgse.report.page import NONE, esc, number, percent

STATE_WORDS = {
    "finished": "finished",
    "stopped": "stopped early",
    "collapsed": "collapsed",
    "failed": "failed",
    "running": "running",
}
MEASURES = {
    "zsl": "T1",
    "seen": "seen",
    "unseen": "unseen",
    "harmonic_mean": "H",
}


def causes(trials: Sequence[Trial]) -> list[tuple[str, str, list[str]]]:
    """(state, cause, names of trials), the most frequent first, of failed and collapsed trials."""
    groups: dict[tuple[str, str], list[str]] = {}
    for trial in trials:
        if trial.state in ("failed", "collapsed"):
            cause = trial.cause or "no cause was recorded"
            groups.setdefault((trial.state, cause), []).append(trial.name)
    order = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [(state, cause, names) for (state, cause), names in order]


def counts(trials: Sequence[Trial]) -> list[tuple[str, int]]:
    """(state in words, number of trials) of every state that occurs."""
    found = Counter(trial.state for trial in trials)
    return [(word, found[state]) for state, word in STATE_WORDS.items() if found[state]]


def subscript(label: str) -> str:
    """A label as HTML, with what follows an underscore as a subscript."""
    head, _, tail = label.partition("_")
    return f"{esc(head)}<sub>{esc(tail)}</sub>" if tail else esc(label)


def trials_table(search: Search, axes: Sequence[Axis]) -> str:
    """All trials, the best first; a click on a heading sorts."""
    order = {id(trial): n for n, trial in enumerate(search.ranked())}
    rows = sorted(
        enumerate(search.trials), key=lambda each: order.get(id(each[1]), len(search.trials))
    )
    heads = [("trial", ""), ("state", ""), ("objective, %", ""), ("epochs", ""), ("seconds", "")]
    heads += [(axis.label, axis.name) for axis in axes]
    head = "".join(
        f'<th scope=col title="{esc(hint)}"><button type="button">{subscript(text)}</button></th>'
        for text, hint in heads
    )
    body = ""
    for t, trial in rows:
        cells = _cell(STATE_WORDS[trial.state], trial.state)
        cells += _cell(percent(trial.objective), trial.objective)
        cells += _cell(str(trial.epoch), trial.epoch)
        cells += _cell(number(trial.seconds, 1), trial.seconds)
        for axis in axes:
            value = trial.params.get(axis.name)
            cells += _cell(NONE if value is None else plain(value), value)
        kind = "t best" if trial is search.best else "t"
        head_cell = f'<th scope=row data-v="{esc(trial.name)}">{esc(trial.name)}</th>'
        body += f'<tr class="{kind}" data-t="{t}">{head_cell}{cells}</tr>'
    return (
        '<div class="scroll tall"><table class="trials" id="trials-table"><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def troubles(search: Search) -> str:
    """Causes of failed and collapsed trials, and files that were passed over."""
    items = ""
    for state, cause, names in causes(search.trials):
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        trials = "1 trial" if len(names) == 1 else f"{len(names)} trials"
        items += (
            f"<li><b>{trials} {STATE_WORDS[state]}</b> {esc(cause)} "
            f"<small>{esc(shown)}</small></li>"
        )
    if not items:
        return '<p class="good">No trial failed or collapsed.</p>'
    return f'<ul class="findings">{items}</ul>'


def final_table(search: Search, winner: FinalRow | None) -> str:
    """Validation and test side by side, by falling validation."""
    default = next((row for row in search.final if row.is_default), None)
    base = None if default is None else default.test.get(search.objective)
    measures = [name for name in MEASURES if any(name in row.test for row in search.final)]
    measures += [
        name
        for name in dict.fromkeys(n for row in search.final for n in row.test)
        if name not in measures
    ]
    body = ""
    for row in search.final:
        ours = row.test.get(search.objective)
        gain = ""
        if base is not None and ours is not None and not row.is_default:
            gain = points(ours - base)
        kind = "down" if gain.startswith("\N{MINUS SIGN}") else "up" if gain != "0.0" else ""
        cells = f"<td>{percent(row.validation)}</td>"
        for name in measures:
            text = percent(row.test.get(name))
            cells += f"<td><b>{text}</b></td>" if name == search.objective else f"<td>{text}</td>"
        cells += f'<td class="{kind}">{gain}</td>'
        mark = ' class="best"' if row is winner else ""
        note = f" <small>{esc(row.cause or row.model)}</small>"
        body += f"<tr{mark}><th scope=row>{esc(row.name)}{note}</th>{cells}</tr>"
    heads = "".join(f"<th scope=col>test {esc(MEASURES.get(name, name))}</th>" for name in measures)
    return (
        '<div class="scroll"><table class="plain finals"><thead><tr><th></th>'
        f"<th scope=col>validation</th>{heads}<th scope=col>against default</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def points(difference: float) -> str:
    """A difference of shares in points of a hundred, with its sign; "0.0" is no difference."""
    text = percent(difference)
    return text if text == "0.0" or text.startswith("\N{MINUS SIGN}") else f"+{text}"


def _cell(text: str, value: object) -> str:
    """A cell with the value that it is sorted by."""
    return f'<td data-v="{"" if value is None else esc(value)}">{esc(text)}</td>'
