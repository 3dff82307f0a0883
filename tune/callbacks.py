"""What the driver of a search does and shows as its trials report."""

from pathlib import Path
from typing import Any

from ray.tune import Callback

from distributed.display import Stage
from tune.report.axes import label_of, value_text
from tune.report.verdict import counts
from tune.searcher import JournalSearch
from tune.study import TrialRecord, ranked, trials_of
from tune.trial.checkpoints import delete_checkpoints
from vgse.report.page import percent


class TrialCallback(Callback):
    """Shows each trial as the journal has it, and deletes the checkpoints of those that ended."""

    def __init__(
        self, folder: Path, searcher: JournalSearch, stage: Stage, *, interactive: bool
    ) -> None:
        self._folder, self._searcher = folder, searcher
        self._stage, self._interactive = stage, interactive

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune saves its callbacks for a restore that never comes."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has a process."""
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch's row."""
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended, by itself or by ASHA."""
        self._end(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died once too often."""
        self._searcher.fail(trial.trial_id, death_cause(trial))
        self._end(trial.config["trial"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died, and it goes on in another."""
        self._stage.say(f"{trial.config['trial']} goes on: {death_cause(trial)}")

    def _show(self) -> list[TrialRecord]:
        records = trials_of(self._searcher.study)
        running, best = [record for record in records if not record.ended], ranked(records)
        note = f"best {percent(best[0].objective)} % ({best[0].name})" if best else ""
        shown = running[-8:] + best[:8] if self._interactive else []
        details = [("trials", counts(records)), *((r.name, describe_trial(r)) for r in shown)]
        self._stage.update(len(records) - len(running), note, details)
        return records

    def _end(self, name: str) -> None:
        record = next(record for record in self._show() if record.name == name)
        if record.ended:  # else a later attempt goes on with it
            delete_checkpoints(self._folder, name)
            if record.cause or not self._interactive:
                self._stage.say(f"{name} {describe_trial(record)}")


def describe_trial(record: TrialRecord) -> str:
    """One line: state, epoch, objective, cause and parameters."""
    parts = [f"{record.state}, epoch {record.epoch}/{record.epochs}"]
    if record.objective is not None:
        parts.append(f"{percent(record.objective)} %")
    parts += [record.cause] if record.cause else []
    fields = (f"{label_of(name)} {value_text(value)}" for name, value in record.params.items())
    return f"{', '.join(parts)} ({', '.join(fields)})"


def death_cause(trial: Any) -> str:
    """One line on a trial's lost process: Ray hands over its last words, and no exception."""
    try:
        lines = Path(trial.error_file or "").read_text(encoding="utf-8").split("\n")
    except OSError:
        lines = []
    words = next((line.strip() for line in reversed(lines) if line.strip()), "no cause is known")
    return f"its process was lost: {words[:300]}"
