"""What is shown of a search's trials, and what the driver does as they report."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from tune.report.analyse import trial_table
from tune.report.axes import label_of, plain
from tune.searcher import JournalSearch
from tune.study import TrialRecord, ranked, trials_of
from tune.trial.checkpoints import delete_checkpoints
from vgse.report.page import percent

_SHOWN = 8
_PLAIN_INTERVAL_S = 30.0


class SearchDisplay:
    """The display of a search while its trials run; use as a context manager."""

    def __init__(
        self,
        total: int,
        objective: str,
        before: Sequence[TrialRecord] = (),
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(highlight=False)
        self._total, self._objective = total, objective
        self._records = list(before)
        self._ended_before = sum(record.ended for record in before)
        self._began = self._printed = time.monotonic()
        self._live = Live(
            console=self.console,
            transient=True,
            refresh_per_second=2,
            get_renderable=self._render,
        )

    def __enter__(self) -> "SearchDisplay":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def show(self, records: Sequence[TrialRecord]) -> None:
        """Show the trials as they are now."""
        self._records = list(records)
        due = time.monotonic() - self._printed > _PLAIN_INTERVAL_S
        if due and not self.console.is_terminal:
            self.line(self._status())

    def ended(self, record: TrialRecord) -> None:
        """Say how a trial ended; in a terminal only of one that went wrong."""
        wrong = record.state in ("failed", "collapsed")
        if self.console.is_terminal and not wrong:
            return
        parts = [f"{record.name} {record.state:<9} epoch {record.epoch}/{record.epochs}"]
        if record.objective is not None:
            parts.append(f"{self._objective} {percent(record.objective)} %")
        if wrong:
            parts.append(record.cause)
        fields = (f"{label_of(name)} {plain(value)}" for name, value in record.params.items())
        self.line("  ".join([*parts, f"({', '.join(fields)})"]))

    def line(self, text: str) -> None:
        """Print a line, in a terminal above the table."""
        self._printed = time.monotonic()
        self.console.print(escape(text), soft_wrap=True)

    def _status(self) -> str:
        records = self._records
        done = sum(record.ended for record in records)
        minutes = (time.monotonic() - self._began) / 60
        text = f"search      {done}/{self._total} trials, {len(records) - done} running"
        if done > self._ended_before and minutes > 0:
            rate = (done - self._ended_before) / minutes
            text += f", {rate:.1f} a minute, {(self._total - done) / rate:.0f} minutes left"
        if best := ranked(records):
            text += f", best {percent(best[0].objective)} % ({best[0].name})"
        return text

    def _render(self) -> RenderableType:
        records = list(self._records)
        running = [record for record in records if not record.ended]
        shown = running[-_SHOWN:] + ranked(records)[:_SHOWN]
        states = [record.state for record in records if record.ended]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        head = Text(self._status() + (f" ({counts})" if counts else ""))
        if not shown:
            return head
        return Group(head, trial_table(shown, sorted(shown[0].params), self.console.width))


class TrialCallback(Callback):
    """Shows each trial as the journal has it, and deletes the checkpoints of those that ended."""

    def __init__(self, folder: Path, searcher: JournalSearch, display: SearchDisplay) -> None:
        self._folder, self._searcher, self._display = folder, searcher, display

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune saves its callbacks for a restore that never comes."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has a process."""
        self._display.show(trials_of(self._searcher.study))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch's row."""
        self._display.show(trials_of(self._searcher.study))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended, by itself or by ASHA."""
        self._end(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died once too often."""
        self._searcher.fail(trial.trial_id, death_cause(trial))
        self._end(trial.config["trial"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died, and it goes on in another."""
        self._display.line(f"{trial.config['trial']} goes on: {death_cause(trial)}")

    def _end(self, name: str) -> None:
        records = trials_of(self._searcher.study)
        self._display.show(records)
        record = next(record for record in records if record.name == name)
        if record.ended:  # else a later attempt goes on with it
            delete_checkpoints(self._folder, name)
            self._display.ended(record)


def death_cause(trial: Any) -> str:
    """One line from what Ray wrote down of a trial's last failure."""
    try:
        text = Path(trial.error_file or "").read_text(encoding="utf-8")
    except OSError:
        text = ""
    text = text.rpartition("Failure #")[2]
    lowered = text.lower()
    if "low on memory" in lowered or "outofmemory" in lowered:
        return "out of memory: Ray ended its process"
    if "node" in lowered and "actor" not in lowered:
        return "its node was lost"
    if "actor" in lowered:
        return "its process was killed: by the system for lack of memory, or with its node"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it failed without a word"
