"""What a search folder holds, read without trusting it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune.study import TrialRecord, ranked, read_trials, tested_by
from vgse.errors import UserError
from vgse.files import read_mapping


@dataclass(frozen=True)
class FinalRow:
    """A configuration that was chosen to be retrained and to open the test images once."""

    name: str
    validation: float | None
    test: dict[str, float]  # measure -> share in 0..1; empty where test images stayed closed
    model: str
    cause: str  # why it has no test results, where that is known

    @property
    def is_default(self) -> bool:
        """Whether this is the configuration before the search."""
        return self.name == "default"


@dataclass(frozen=True)
class Search:
    """The files of one search folder."""

    name: str
    trials: list[TrialRecord]
    space: dict[str, dict[str, Any]]  # dotted field -> its range or choices
    objective: str
    final: list[FinalRow]  # highest validation first; empty before the finalists
    tested_by: str  # measure of the test images that the finalists are compared by
    timing: dict[str, Any]
    best_text: str
    best: TrialRecord | None  # the first of ranked(trials)


def load_search(folder: Path) -> Search:
    """The search in `folder`."""
    folder = Path(folder)
    trials = read_trials(folder)
    if not trials and not (folder / "search.yaml").is_file():
        raise UserError(
            f"{folder}: holds no search; give a folder that `python -m tune search --config "
            "CONFIG` wrote"
        )
    remedy = "move it away and resume"
    settings = read_mapping(folder / "search.yaml", remedy=remedy)
    final = read_mapping(folder / "final.json", remedy=remedy)
    best = folder / "best.yaml"
    space = settings.get("space")
    entries = space.items() if isinstance(space, dict) else ()
    objective = str(final.get("objective") or settings.get("objective") or "zsl")
    return Search(
        name=folder.resolve().name,
        trials=trials,
        space={str(name): spec for name, spec in entries if isinstance(spec, dict)},
        objective=objective,
        tested_by=tested_by(objective),
        final=_final(folder / "final.json", final),
        timing=read_mapping(folder / "search.json", remedy=remedy),
        best_text=best.read_text("utf-8", "replace") if best.is_file() else "",
        best=next(iter(ranked(trials)), None),
    )


def finite(value: Any) -> float | None:
    """`value` as a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON knows integers of any length
        return None


def _final(path: Path, content: dict[str, Any]) -> list[FinalRow]:
    try:
        rows = [
            FinalRow(
                name=str(entry["name"]),
                validation=finite(entry["validation"]),
                test={
                    str(name): result
                    for name, value in (entry["test"] or {}).items()
                    if (result := finite(value)) is not None
                },
                model=str(entry.get("model") or ""),
                cause=str(entry.get("cause") or ""),
            )
            for entry in content.get("rows", [])
        ]
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{path}: its rows are damaged; move it away and resume") from None
    return sorted(rows, key=lambda row: -(-1.0 if row.validation is None else row.validation))
