"""`python -m tune analyse`: the best trials on the terminal, everything in search.html."""

from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune.report.axes import axes_of, label_of, value_text
from tune.report.search_files import load_search
from tune.study import TrialRecord, ranked

NUM_SHOWN = 10


def analyse(folder: Path) -> Path:
    """Print what the search in `folder` found, write its page and return the page's path."""
    # Plotly and scikit-learn take seconds to load; a folder that is no search is told at once.
    search = load_search(folder)
    from tune.report.importance import importance
    from tune.report.page import MEASURES, write_page
    from tune.report.verdict import causes, counts, headline, judge_ranks
    from vgse.report.page import percent

    console = Console(markup=False, emoji=False, highlight=False)
    axes = axes_of(search)
    found = importance(search.trials, axes)
    falling = sorted(axes, key=lambda axis: -found.shares[axis.name] if found else 0)
    best = ranked(search.trials)[:NUM_SHOWN]
    console.print(trial_table(best, [axis.name for axis in falling], console.width))
    if any(row.test for row in search.final):
        table = Table(title="retrained on all seen classes", title_justify="left", pad_edge=False)
        table.add_column("trial")
        for name in ("validation %", *(f"test {name} %" for name in MEASURES.values())):
            table.add_column(name, justify="right")
        for row in search.final:
            cells = (percent(row.test.get(measure)) for measure in MEASURES)
            table.add_row(Text(_printable(row.name)), percent(row.validation), *cells)
        console.print(table)
    lines = [counts(search.trials)]
    for state, cause, names in causes(search.trials):
        lines.append(f"  {state} {len(names)}x: {cause} ({', '.join(names[:5])})")
    if found:
        shares = ", ".join(f"{label_of(name)} {100 * s:.0f}%" for name, s in found.shares.items())
        lines.append(f"importance: {shares}; below {100 * found.floor:.0f}% it may be chance")
    else:
        lines.append("importance: too few trials")
    lines += headline(search)
    if search.final:
        lines.append(judge_ranks(search))
    for line in lines:
        console.print(Text(_printable(line)), soft_wrap=True)
    return write_page(folder, search, axes, found)


def trial_table(trials: Sequence[TrialRecord], names: Sequence[str], width: int) -> Table:
    """Trials, with as many of the hyper-parameters `names` as there is room for."""
    columns = [
        ["trial", *(trial.name for trial in trials)],
        ["state", *(trial.state for trial in trials)],
        ["%", *("" if t.objective is None else f"{100 * t.objective:.1f}" for t in trials)],
        ["epoch", *(f"{trial.epoch}/{trial.epochs}" for trial in trials)],
    ]
    for name in names:
        values = (trial.params.get(name) for trial in trials)
        columns.append([label_of(name), *("" if v is None else value_text(v) for v in values)])
    columns = [[_printable(cell) for cell in column] for column in columns]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    shown = []
    for n, column in enumerate(columns):
        needed = max(map(cell_len, column))
        if n < 4 or needed <= width:
            table.add_column(Text(column[0]), justify="left" if n < 2 else "right", no_wrap=True)
            shown.append(column[1:])
            width -= needed + 1
    for row in zip(*shown, strict=True):
        table.add_row(*map(Text, row))
    return table


def _printable(text: str) -> str:
    """`text` without the characters by which a stranger's cause could steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
