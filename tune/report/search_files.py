"""What a search folder holds, read without trusting it."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tune.study import TrialRecord, read_trials
from vgse.errors import UserError

SEARCH = "python -m tune search --config CONFIG"


@dataclass(frozen=True)
class Trial:
    """One trial as far as it has come."""

    name: str
    state: str
    cause: str
    params: dict[str, Any]
    curve: list[tuple[int, float]]
    """(epoch, objective), by rising epoch, where the objective was measured."""
    objective: float | None
    """The last one measured on validation classes, in 0..1."""
    epochs: int
    seconds: float
    started: float
    source: str

    @property
    def epoch(self) -> int:
        """The epoch of the last objective; 0 before the first."""
        return self.curve[-1][0] if self.curve else 0


@dataclass(frozen=True)
class FinalRow:
    """A configuration that was chosen to be retrained and to open the test images once."""

    name: str
    params: dict[str, Any]
    validation: float | None
    test: dict[str, float]
    """Measure -> share in 0..1; empty where the test images stayed closed."""
    model: str
    cause: str
    """Why it has no test results, where that is known."""

    @property
    def is_default(self) -> bool:
        """Whether this is the configuration before the search."""
        return self.name == "default"


@dataclass(frozen=True)
class Search:
    """The files of one search folder."""

    name: str
    trials: list[Trial]
    """In the order in which they began."""
    space: dict[str, dict[str, Any]]
    objective: str
    final: list[FinalRow]
    """Highest validation first; empty until the best configurations were retrained."""
    facts: dict[str, Any]
    best_text: str

    @property
    def best(self) -> Trial | None:
        """The finished trial with the highest objective; while none is, the best stopped one."""
        return next(iter(self.ranked()), None)

    def ranked(self) -> list[Trial]:
        """Finished trials, the best first, then stopped ones; those without objective are out."""
        able = [t for t in self.trials if t.state in ("finished", "stopped")]
        able = [trial for trial in able if trial.objective is not None]
        return sorted(able, key=lambda t: (t.state != "finished", -(t.objective or 0.0), t.name))

    def with_state(self, state: str) -> list[Trial]:
        """The trials in that state."""
        return [trial for trial in self.trials if trial.state == state]


def load_search(folder: Path) -> Search:
    """The search in `folder`.

    Raises ValueError for a folder without a search, and for a file that cannot be read.
    """
    folder = Path(folder)
    trials = [trial_of(record) for record in read_trials(folder)]
    if not trials and not (folder / "search.yaml").is_file():
        raise UserError(f"{folder}: holds no search; give a folder that `{SEARCH}` wrote")
    settings = _mapping(folder / "search.yaml", yaml.safe_load)
    final = _mapping(folder / "final.json", json.loads)
    objective = final.get("objective") or settings.get("objective") or "zsl"
    return Search(
        name=folder.resolve().name,
        trials=trials,
        space=_space(settings),
        objective=str(objective),
        final=_final(folder / "final.json", final),
        facts=_mapping(folder / "search.json", json.loads),
        best_text=_text(folder / "best.yaml"),
    )


def trial_of(record: TrialRecord) -> Trial:
    """A trial as the page draws it."""
    scored = [(finite(row["epoch"]), finite(row["objective"])) for row in record.history]
    curve = [(int(epoch), score) for epoch, score in scored if epoch and score is not None]
    return Trial(
        name=record.name,
        state=record.state,
        cause=record.cause,
        params={name: value for name, value in record.params.items() if value is not None},
        curve=curve,
        objective=curve[-1][1] if curve else None,
        epochs=record.epochs,
        seconds=record.seconds,
        started=record.started,
        source=record.source,
    )


def finite(value: Any) -> float | None:
    """`value` as a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON knows integers of any length
        return None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    """The mapping in a file; empty for a file that is not there."""
    if not path.is_file():
        return {}
    try:
        content = parse(_text(path))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({line}); move it away and resume") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a mapping of fields; move it away and resume")
    return content


def _space(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Dotted field -> its range or choices, from flat or nested mappings."""
    space = settings.get("space")
    if not isinstance(space, dict):
        return {}
    found: dict[str, dict[str, Any]] = {}

    def walk(prefix: str, part: dict[Any, Any]) -> None:
        for key, value in part.items():
            if not isinstance(value, dict):
                continue
            name = f"{prefix}{key}"
            if {"low", "high"} <= value.keys() or isinstance(value.get("choices"), list):
                found[name] = value
            else:
                walk(f"{name}.", value)

    walk("", space)
    return found


def _final(path: Path, content: dict[str, Any]) -> list[FinalRow]:
    rows: list[FinalRow] = []
    entries = content.get("rows") or []
    if not isinstance(entries, list):
        raise UserError(f"{path}: rows is not a list; move it away and resume")
    for entry in entries:
        results = entry.get("test") or {} if isinstance(entry, dict) else None
        if not isinstance(results, dict):
            raise UserError(f"{path}: a row holds no results; move it away and resume")
        test = {str(name): finite(value) for name, value in results.items()}
        params = entry.get("params")
        rows.append(
            FinalRow(
                name=str(entry.get("name", "")),
                params=params if isinstance(params, dict) else {},
                validation=finite(entry.get("validation")),
                test={name: value for name, value in test.items() if value is not None},
                model=str(entry.get("model") or ""),
                cause=str(entry.get("cause") or ""),
            )
        )
    return sorted(rows, key=lambda row: -(-1.0 if row.validation is None else row.validation))
