"""What the terminal shows: one line a stage, a bar while it runs, plain lines when piped."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_PLAIN_INTERVAL_S = 15.0


class Stage:
    """A stage under way: move its bar, or say what it ends with."""

    def __init__(self, display: "Display", name: str, total: float | None) -> None:
        self._display = display
        self._task = display.progress.add_task(name, total=total, note="")
        self._name = name
        self._total = total
        self.done = 0.0
        self.note = ""
        self._last_plain = time.monotonic()
        self.summary = ""

    def update(self, done: float, note: str = "") -> None:
        """Set how much is done, with a short note beside the bar."""
        self.done, self.note = done, note
        self._display.progress.update(self._task, completed=done, note=note)
        if self._display.console.is_terminal:
            return
        if time.monotonic() - self._last_plain > _PLAIN_INTERVAL_S:
            self._last_plain = time.monotonic()
            share = f"{done / self._total:.0%}" if self._total else f"{done:,.0f}"
            self._display.line(f"{self._name:<11} {share} {note}".rstrip())

    def advance(self, amount: float, note: str = "") -> None:
        """Add to what is done."""
        self.update(self.done + amount, note)

    def finish(self, seconds: float) -> None:
        """Replace the bar by the stage's line."""
        self._display.progress.remove_task(self._task)
        self._display.line(f"{self._name:<11} {self.summary} [dim]({seconds:.0f} s)[/dim]")


class Display:
    """A rich display on the driver; use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.progress = Progress(
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def line(self, text: str) -> None:
        """Print one line above the bar."""
        self.console.print(text, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[Stage]:
        """Show a stage; set `summary` inside to say what came out."""
        started = time.monotonic()
        stage = Stage(self, name, total)
        try:
            yield stage
        except BaseException:
            self.progress.remove_task(stage._task)
            raise
        stage.finish(time.monotonic() - started)
