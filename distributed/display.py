"""What the terminal shows: one line a stage, a bar while it runs, plain lines when piped."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import progress
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

logger = logging.getLogger(__name__)

_PLAIN_INTERVAL_S = 15.0
_NAME = 11  # columns of a stage's name

Details = Sequence[tuple[str, str]]
"""Labels and what they say, shown below the bar."""


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class Stage:
    """A stage under way: move its bar, or say what it ends with."""

    def __init__(self, display: "Display", name: str, total: float | None) -> None:
        self._display, self._name, self._total = display, name, total
        self.task = display.bars.add_task(name, total=total, note="")
        self._last_plain = time.monotonic()
        self._last_text, self._pause = "", _PLAIN_INTERVAL_S
        self.done = 0.0
        self.summary = ""

    def update(self, done: float, note: str = "", details: Details = ()) -> None:
        """Set how much is done, with a short note beside the bar and details below it."""
        self.done = done
        self._display.details = details
        self._display.bars.update(self.task, completed=done, note=note)
        if self._display.console.is_terminal:
            return
        if time.monotonic() - self._last_plain > self._pause:
            share = f"{done / self._total:.0%}" if self._total else f"{done:,.0f}"
            text = " ".join([share, note, ", ".join(map(" ".join, details))])
            # What stands still is said less and less often.
            self._pause = 2 * self._pause if text == self._last_text else _PLAIN_INTERVAL_S
            self._last_text = text
            self.say(text)

    def advance(self, amount: float, note: str = "") -> None:
        """Add to what is done."""
        self.update(self.done + amount, note)

    def say(self, text: str) -> None:
        """Print a line of this stage at once, in a terminal above the bar."""
        self._last_plain = time.monotonic()
        self._display.line(f"{self._name:<{_NAME}} {' '.join(text.split())}")


class Display:
    """A rich display on the driver; use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(markup=False, emoji=False, highlight=False)
        self.details: Details = ()
        self.bars = progress.Progress(
            progress.TextColumn(f"{{task.description:<{_NAME}}}"),
            progress.BarColumn(bar_width=30),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        self._live = Live(console=self.console, transient=True, get_renderable=self._render)

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def line(self, text: str | Text) -> None:
        """Print one line, in which brackets and :names: mean nothing, above the bar; it is logged
        as well."""
        shown = Text(text) if isinstance(text, str) else text
        logger.info(shown.plain)
        self.console.print(shown, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[Stage]:
        """Show a stage; set `summary` inside to say what came out."""
        started = time.monotonic()
        stage = Stage(self, name, total)
        try:
            yield stage
        finally:
            self.details = ()
            self.bars.remove_task(stage.task)
            if self._live.is_started:
                self._live.refresh()
        seconds = time.monotonic() - started
        said = f"{name:<{_NAME}} {stage.summary} ", (f"({seconds:.0f} s)", "dim")
        self.line(Text.assemble(*said))

    def _render(self) -> RenderableType:
        rows = Table.grid(padding=(0, 2))
        for label, text in self.details:
            rows.add_row(Text(label, "dim"), Text(text))
        return Group(self.bars, Padding(rows, (0, 0, 0, _NAME + 1)))
