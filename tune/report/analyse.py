"""`python -m tune analyse`: the best trials on the terminal, everything in search.html."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune.report.axes import Axis, axes_of, plain
from tune.report.search_files import Search, load_search

NUM_SHOWN = 10


def analyse(folder: Path) -> Path:
    """Print what the search in `folder` found, write its page and return the page's path.

    Raises ValueError for a folder without a search, and for a file that cannot be read.
    """
    # Optuna and the report take seconds to load; a folder that is no search is told at once.
    search = load_search(folder)
    from tune.report.importance import importance
    from tune.report.page import save_page
    from tune.report.tables import causes, counts
    from tune.report.verdict import headline, judge_ranks

    console = Console(highlight=False)
    axes = axes_of(search)
    found = importance(search.trials, axes)
    falling = sorted(axes, key=lambda axis: -found.shares[axis.name] if found else 0)
    console.print(_best_table(search, falling, console.width))
    _line(console, ", ".join(f"{count} {word}" for word, count in counts(search.trials)))
    for state, cause, names in causes(search.trials):
        _line(console, f"  {state} {len(names)}x: {cause} ({', '.join(names[:5])})")
    if found:
        labels = {axis.name: axis.label for axis in axes}
        shares = ", ".join(f"{labels[name]} {100 * s:.0f}%" for name, s in found.shares.items())
        _line(console, f"importance: {shares}; below {100 * found.floor:.0f}% it may be chance")
    else:
        _line(console, "importance: too few trials")
    for sentence in headline(search):
        _line(console, sentence)
    if search.final:
        _line(console, judge_ranks(search))
    return save_page(folder, search, axes, found)


def _best_table(search: Search, axes: Sequence[Axis], width: int) -> Table:
    """The best trials, with as many hyper-parameters as the terminal has room for."""
    shown = axes[: max(1, (width - 36) // 11)]
    table = Table(box=None, pad_edge=False)
    for head in ("trial", "state"):
        table.add_column(head)
    for head in ("objective", "epochs", *(_clean(axis.label) for axis in shown)):
        table.add_column(Text(head), justify="right", overflow="fold")
    for trial in search.ranked()[:NUM_SHOWN]:
        values = [plain(trial.params.get(axis.name, "")) for axis in shown]
        score = f"{100 * (trial.objective or 0):.1f}%"
        cells = [trial.name, trial.state, score, str(trial.epoch), *values]
        table.add_row(*(Text(_clean(cell)) for cell in cells))
    return table


def _line(console: Console, text: str) -> None:
    console.print(Text(_clean(text)), soft_wrap=True)


def _clean(text: str) -> str:
    """`text` without the characters by which a stranger's cause could steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
