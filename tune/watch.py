"""What the driver does as trials report: keep their files, and show them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback

from tune.keeping import forget
from tune.live import Live
from tune.proposals import ending_of
from tune.records import TrialRecord, write_record

_OURS = (
    "epoch", "objective", "loss", "used_clusters", "nmi", "seconds", "classification", "semantic",
    "consistency", "entropy", "usage_entropy", "learning_rate", "zsl", "seen", "unseen",
    "harmonic_mean",
)  # fmt: skip


class Watch(Callback):
    """Writes `trials/<trial>.json` after every epoch; nobody else writes there."""

    def __init__(
        self, search: Path, epochs: int, source: str, records: Sequence[TrialRecord], live: Live
    ) -> None:
        self.records = {record.trial: record for record in records}
        self._search, self._epochs, self._source, self._live = search, epochs, source, live
        self._last: dict[str, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune saves its callbacks for a restore that never comes."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has a process."""
        self._save(self._record(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch's row."""
        record = self._record(trial)
        self._last[record.trial] = result
        if result.get("objective") is not None:
            record.add({name: result[name] for name in _OURS if name in result})
        self._save(record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended, by itself or by ASHA."""
        record = self._record(trial)
        record.state, record.cause = ending_of(self._last.get(record.trial, {}), self._epochs)
        self._end(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died once too often."""
        record = self._record(trial)
        record.state, record.cause = "failed", death_cause(error_of(trial))
        self._end(record)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died, and it goes on in another."""
        cause = death_cause(error_of(trial))
        self._live.say(f"{trial.config['trial']} goes on: {cause}")

    def _record(self, trial: Any) -> TrialRecord:
        name = trial.config["trial"]
        if name not in self.records:
            self.records[name] = TrialRecord(
                trial=name,
                params=dict(trial.config["params"]),
                epochs=self._epochs,
                source=self._source,
                started=round(time.time(), 3),
            )
        return self.records[name]

    def _save(self, record: TrialRecord) -> None:
        write_record(self._search, record)
        self._live.show(self.records.values())

    def _end(self, record: TrialRecord) -> None:
        self._save(record)
        forget(self._search, record.trial)
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
