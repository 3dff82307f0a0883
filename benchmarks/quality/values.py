"""Results of the ablation as numbers: the measures of settings and rows on every split."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]  # one a split, in percent
_IN_PERCENT = 100.0


@dataclass(frozen=True)
class Outcome:
    """A setting's results, one a split; `benchmarks.quality.run.run` says what they hold."""

    name: str
    label: str
    group: str
    results: list[dict[str, Any]]

    @property
    def models(self) -> list[str]:
        """The zero-shot models of the table."""
        return list(self.results[0]["rows"]["smo"]["results"])

    def row_names(self) -> list[str]:
        """Rows of relations that were evaluated, in their order."""
        return list(self.results[0]["rows"])

    def row_label(self, row: str) -> str:
        """What a row is called."""
        return str(self.results[0]["rows"][row]["label"])

    def measure(self, name: str) -> Values:
        """A measure of the clusters."""
        share = _IN_PERCENT
        if name == "used_clusters":
            share /= self.results[0]["clusters"]["num_clusters"]
        return np.array([share * result["clusters"][name] for result in self.results])

    def accuracy(self, row: str, figure: str = "zsl", model: str | None = None) -> Values:
        """A figure of a row by one model, or its mean over the models."""
        models = [model] if model else self.models
        return np.array(
            [
                _IN_PERCENT * np.mean([r["rows"][row]["results"][m][figure] for m in models])
                for r in self.results
            ]
        )

    def chosen(self, rows: Sequence[str], figure: str = "zsl", model: str | None = None) -> Values:
        """The figure of whichever of `rows` validation prefers, for each model and split."""
        models = [model] if model else self.models
        found = []
        for result in self.results:
            picked = []
            for name in models:
                figures = [result["rows"][row]["results"][name] for row in rows]
                picked.append(max(figures, key=lambda f: f["val_zsl"])[figure])
            found.append(_IN_PERCENT * np.mean(picked))
        return np.array(found)


@dataclass(frozen=True)
class Ablation:
    """All that the page shows."""

    outcomes: list[Outcome]
    splits: list[dict[str, Any]]
    config: dict[str, Any]
    machine: str
    note: str = ""
    repeat: dict[str, Any] | None = None  # repeat.json of whole runs of the configuration
    knowledge: dict[str, dict[str, Any]] = field(default_factory=dict)  # run -> a RunResult

    def find(self, name: str) -> Outcome | None:
        """The outcome of a setting; None where it was not run."""
        return next((o for o in self.outcomes if o.name == name), None)

    def of_group(self, group: str) -> list[Outcome]:
        """The outcomes of a group of settings."""
        return [outcome for outcome in self.outcomes if outcome.group == group]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; figures with five digits."""
        rounded: dict[str, Any] = _rounded(asdict(self))
        return rounded


def _rounded(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return round(content, 5) if isinstance(content, float) else content
