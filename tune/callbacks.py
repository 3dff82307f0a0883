"""What the driver does as trials report: keep their files, and show them."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tune.searcher import JournalSearch
from tune.study import TrialRecord, ranked, trials_of
from tune.trial.checkpoints import forget

_SHOWN = 8
_PLAIN_INTERVAL_S = 30.0


def percent(value: float | None) -> str:
    """A fraction as the tables show it."""
    return "" if value is None else f"{100 * value:.1f}"


def plain(value: object) -> str:
    """A parameter as the tables show it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short(name: str) -> str:
    """The last part of a dotted field."""
    return name.rsplit(".", 1)[-1]


def trial_table(title: str, records: Iterable[TrialRecord]) -> Table:
    """One row a trial: state, epoch, objective, parameters."""
    shown = list(records)
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("trial")
    table.add_column("state")
    for name in ("epoch", "objective %"):
        table.add_column(name, justify="right")
    fields = sorted({name for record in shown for name in record.params})
    for name in fields:
        table.add_column(short(name), justify="right", overflow="fold")
    for record in shown:
        row = [record.name, record.state, f"{record.epoch}/{record.epochs}"]
        row += [percent(record.objective)]
        row += [plain(record.params[name]) if name in record.params else "" for name in fields]
        table.add_row(*row)
    return table


class Live:
    """The display of a search while its trials run; use as a context manager."""

    def __init__(self, total: int, objective: str, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._total, self._objective = total, objective
        self._records: list[TrialRecord] = []
        self._began = self._said = time.monotonic()
        self._before = 0
        self._live = RichLive(
            console=self.console,
            transient=True,
            refresh_per_second=2,
            get_renderable=self._render,
        )

    def __enter__(self) -> "Live":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def begin(self, records: Iterable[TrialRecord]) -> None:
        """Take what was there before, which counts neither for time nor for speed."""
        self._records = list(records)
        self._before = sum(record.ended for record in self._records)
        self._began = time.monotonic()

    def show(self, records: Iterable[TrialRecord]) -> None:
        """Show the trials as they are now."""
        self._records = list(records)
        due = time.monotonic() - self._said > _PLAIN_INTERVAL_S
        if due and not self.console.is_terminal:
            self.say(self._status())

    def ended(self, record: TrialRecord) -> None:
        """Say how a trial ended."""
        fields = ", ".join(f"{short(k)} {plain(v)}" for k, v in record.params.items())
        parts = [f"{record.name} {record.state:<9} epoch {record.epoch}/{record.epochs}"]
        if record.objective is not None:
            parts.append(f"{self._objective} {percent(record.objective)} %")
        if record.cause and record.state in ("failed", "collapsed"):
            parts.append(record.cause)
        if not self.console.is_terminal or record.state in ("failed", "collapsed"):
            self.say("  ".join([*parts, f"({fields})"]))

    def say(self, text: str) -> None:
        """Print a line, in a terminal above the table."""
        self._said = time.monotonic()
        self.console.print(escape(text), soft_wrap=True)

    def _status(self) -> str:
        records = self._records
        done = sum(record.ended for record in records)
        running = len(records) - done
        minutes = (time.monotonic() - self._began) / 60
        text = f"search      {done}/{self._total} trials, {running} running"
        if done > self._before and minutes > 0:
            rate = (done - self._before) / minutes
            text += f", {rate:.1f} a minute, {(self._total - done) / rate:.0f} minutes left"
        best = ranked(records)
        if best:
            text += f", best {percent(best[0].objective)} % ({best[0].name})"
        return text

    def _render(self) -> RenderableType:
        records = list(self._records)
        running = [record for record in records if not record.ended]
        shown = running[-_SHOWN:] + ranked(records)[:_SHOWN]
        states = [record.state for record in records]
        kinds = [state for state in dict.fromkeys(states) if state != "running"]
        counts = ", ".join(f"{states.count(state)} {state}" for state in kinds)
        head = Text(self._status() + (f" ({counts})" if counts else ""))
        return Group(head, trial_table("", shown)) if shown else head


class TrialCallback(Callback):
    """Shows each trial as the journal has it, and deletes the checkpoints of those that ended."""

    def __init__(self, search: Path, searcher: JournalSearch, live: Live) -> None:
        self._search, self._searcher, self._live = search, searcher, live

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune saves its callbacks for a restore that never comes."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has a process."""
        self._live.show(trials_of(self._searcher.study))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch's row."""
        self._live.show(trials_of(self._searcher.study))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended, by itself or by ASHA."""
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died once too often."""
        self._searcher.fail(trial.trial_id, death_cause(error_of(trial)))
        self._end(trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died, and it goes on in another."""
        cause = death_cause(error_of(trial))
        self._live.say(f"{trial.config['trial']} goes on: {cause}")

    def _end(self, trial: Any) -> None:
        name, records = trial.config["trial"], trials_of(self._searcher.study)
        self._live.show(records)
        record = next(record for record in records if record.name == name)
        if record.ended:  # else a later attempt goes on with it
            forget(self._search, name)
            self._live.ended(record)


def error_of(trial: Any) -> str:
    """What Ray wrote down of a trial's last failure; empty where it wrote nothing."""
    try:
        text = Path(trial.error_file or "").read_text(encoding="utf-8")
    except OSError:
        return ""
    return text.rpartition("Failure #")[2]


def death_cause(text: str) -> str:
    """One line from what Ray says of a process that died."""
    lowered = text.lower()
    if "low on memory" in lowered or "outofmemory" in lowered:
        return "out of memory: Ray ended its process"
    if "node" in lowered and "actor" not in lowered:
        return "its node was lost"
    if "actor" in lowered:
        return "its process was killed: by the system for lack of memory, or with its node"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it failed without a word"
