"""The files of a search: one JSON a trial, which is the truth that a resume starts from."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vgse.errors import UserError
from vgse.files import write_json

VERSION = 1
STATES = ("running", "finished", "stopped", "failed", "collapsed")


@dataclass
class TrialRecord:
    """What is known of one trial; the contents of `trials/<trial>.json`."""

    trial: str
    params: dict[str, Any]
    """Dotted fields of RunConfig and their values."""
    epochs: int
    """Epochs of a trial that nobody stops."""
    source: str = "cache"
    """Where patch features come from: "cache" or "pixels"."""
    state: str = "running"
    """running; finished (all epochs); stopped (by ASHA); failed; collapsed."""
    cause: str | None = None
    """Why it stopped, failed or collapsed, in one line."""
    objective: float | None = None
    """That of the last epoch, in 0..1."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row an epoch: epoch, objective, loss, used_clusters, nmi, seconds and more."""
    seconds: float = 0.0
    """Work, summed over epochs."""
    started: float = 0.0
    """Unix time."""
    version: int = VERSION

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.state != "running"

    @property
    def epoch(self) -> int:
        """The last epoch that is done."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    def add(self, row: dict[str, Any]) -> None:
        """Take an epoch's row; rows of the same or later epochs, of a lost attempt, make way."""
        kept = [old for old in self.history if old["epoch"] < row["epoch"]]
        self.history = [*kept, row]
        self.objective = row.get("objective")
        self.seconds = float(sum(old.get("seconds", 0.0) for old in self.history))


def trial_name(number: int) -> str:
    """0007 for 7."""
    return f"{number:04d}"


def record_path(search: Path, trial: str) -> Path:
    """The file of a trial."""
    return search / "trials" / f"{trial}.json"


def write_record(search: Path, record: TrialRecord) -> None:
    """Write a trial's file, whole or not at all; values that are not finite become null."""
    write_json(record_path(search, record.trial), asdict(record))


def read_records(search: Path) -> list[TrialRecord]:
    """All trials of a search by name; empty for a folder without any.

    Raises:
        ValueError: a file that is no trial, named.
    """
    paths = sorted((search / "trials").glob("[0-9]*.json"))
    return [_read(path) for path in paths if re.fullmatch(r"\d+", path.stem)]


def _read(path: Path) -> TrialRecord:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("version")
        if version != VERSION:
            raise UserError(f"version {version!r}, this program reads {VERSION}")
        known = set(TrialRecord.__dataclass_fields__)
        record = TrialRecord(**{key: value for key, value in content.items() if key in known})
        if record.state not in STATES:
            raise UserError(f"state {record.state!r} is none of {', '.join(STATES)}")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: is not a trial ({error}); delete the file") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; delete the file") from None
    return record


def ranked(records: list[TrialRecord]) -> list[TrialRecord]:
    """Trials with an objective, the best first.

    One that did all its epochs stands before one that was stopped; failed and collapsed ones are
    left out. Ties go to the earlier trial.
    """
    able = [r for r in records if r.state in ("finished", "stopped") and r.objective is not None]
    return sorted(able, key=lambda r: (r.state != "finished", -float(r.objective or 0), r.trial))
