"""The record of a search's trials: an Optuna study in a journal, which optuna-dashboard opens."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from vgse.errors import UserError

JOURNAL = "journal.log"
DEFAULT = "0000"  # the trial of the configuration that is searched around
_DEAD_LOCK_S = 5  # a driver killed while it wrote leaves its lock behind


@dataclass(frozen=True)
class TrialRecord:
    """One trial as far as it has come."""

    name: str
    params: dict[str, Any]  # dotted fields of RunConfig
    state: str  # running; finished (all epochs); stopped (by ASHA); failed; collapsed
    cause: str  # why it failed or collapsed, in one line; else empty
    history: list[dict[str, Any]]  # a row an epoch: epoch, objective in 0..1, loss, seconds …
    epochs: int  # of a trial that nobody stops
    source: str  # of patch features: "cache" or "pixels"

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.state != "running"

    @property
    def epoch(self) -> int:
        """The last epoch with an objective; 0 before the first."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def objective(self) -> float | None:
        """That of the last epoch, in 0..1."""
        return self.history[-1]["objective"] if self.history else None

    @property
    def own_images(self) -> float | None:
        """Accuracy of own images in the last epoch, in 0..1; None in searches made before."""
        return self.history[-1].get("own_images") if self.history else None

    @property
    def seconds(self) -> float:
        """Work, summed over epochs."""
        return float(sum(row.get("seconds") or 0.0 for row in self.history))


def tested_by(objective: str) -> str:
    """What finalists are compared by on test images: zsl where the objective is of own images."""
    return "zsl" if objective.startswith("own_images") else objective


def _journal(folder: Path) -> Path:
    path = folder.absolute() / JOURNAL
    if not path.exists() and any(folder.glob("trials/*.json")):
        raise UserError(
            f"{folder}: its trials are JSON files of an earlier version, and this one reads "
            f"{JOURNAL}; search again under another --search-id, or go on with that version"
        )
    return path


def open_journal(folder: Path, *, write: bool = False) -> JournalStorage:
    """The storage in a search folder, made there if there is none; to write, it is mended first."""
    path = _journal(folder)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if write and path.exists():
        _cut_unfinished_line(path)
    try:  # with the default lock, a symbolic link, which is that of optuna-dashboard too
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(
            f"{path}: is damaged ({' '.join(str(error).split())}); search again under another "
            "--search-id"
        ) from error


def _cut_unfinished_line(path: Path) -> None:
    """Cut what a killed writer left of a line: Optuna reads past it once, and fails for ever after
    the next line is appended."""
    lock = JournalFileSymlinkLock(str(path), grace_period=_DEAD_LOCK_S)
    lock.acquire()
    try:
        with path.open("r+b") as stream:
            content = stream.read()
            last = b"".join(content.splitlines(keepends=True)[-1:])
            with suppress(ValueError):
                if last.endswith(b"\n") and isinstance(json.loads(last), dict):
                    return
            stream.truncate(len(content) - len(last))
            os.fsync(stream.fileno())
    finally:
        lock.release()


def open_study(storage: JournalStorage, name: str, attributes: Mapping[str, Any]) -> optuna.Study:
    """The search's study, made if it is not there; `attributes` are its `epochs` and `source`."""
    names = optuna.get_all_study_names(storage)  # a folder may have been renamed
    study = optuna.create_study(
        study_name=names[0] if names else name,
        storage=storage,
        direction="maximize",
        load_if_exists=True,
    )
    for key, value in attributes.items():
        if study.user_attrs.get(key) != value:
            study.set_user_attr(key, value)
    return study


def read_trials(folder: Path) -> list[TrialRecord]:
    """All trials of the search in a folder, by name; empty where none has begun."""
    if not _journal(folder).exists():
        return []
    storage = open_journal(folder)
    names = optuna.get_all_study_names(storage)
    return trials_of(optuna.load_study(study_name=names[0], storage=storage)) if names else []


def trials_of(study: optuna.Study) -> list[TrialRecord]:
    """All trials of a study that have begun, by name."""
    attributes = study.user_attrs
    records = [_record(trial, attributes) for trial in study.get_trials(deepcopy=False)]
    return [record for record in records if record.params]


def _record(trial: FrozenTrial, attributes: Mapping[str, Any]) -> TrialRecord:
    told = trial.user_attrs
    state = {TrialState.COMPLETE: "finished", TrialState.FAIL: "failed"}.get(trial.state, "running")
    if trial.state == TrialState.PRUNED:
        state = "collapsed" if "collapsed" in told else "stopped"
    return TrialRecord(
        name=f"{trial.number:04d}",
        params={**told.get("outside_space", {}), **trial.params},
        state=state,
        cause=str(told.get("failed") or told.get("collapsed") or ""),
        history=[
            {"epoch": epoch, "objective": objective} | told.get(f"epoch {epoch}", {})
            for epoch, objective in sorted(trial.intermediate_values.items())
            if math.isfinite(objective)
        ],
        epochs=int(attributes.get("epochs", 0)),
        source=str(attributes.get("source", "cache")),
    )


def ranked(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Finished trials with an objective, the best first, then stopped ones."""
    able = [r for r in records if r.state in ("finished", "stopped") and r.objective is not None]
    return sorted(able, key=lambda r: (r.state != "finished", -float(r.objective or 0), r.name))
