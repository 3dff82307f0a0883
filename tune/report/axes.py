"""The axes of a search: the range of a hyper-parameter, and how its values are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tune.report.search_files import Search, finite
from tune.study import TrialRecord
from vgse.config import loss_symbols

LABELS = {
    "model.num_clusters": "D_v",
    "model.temperature": "τ",
    "relations.alpha": "α",
    "training.learning_rate": "lr",
} | {f"loss.{name}": f"λ_{symbol}" for name, symbol in loss_symbols().items()}


@dataclass(frozen=True)
class Axis:
    """A hyper-parameter over its range, or over its choices where there is no range."""

    name: str  # dotted field of the run's configuration
    low: float
    high: float
    log: bool
    choices: tuple[Any, ...] = ()

    def place(self, value: Any) -> float | None:
        """The value's place in 0..1, clamped; None for a value that the axis does not know."""
        if self.choices:
            known = value in self.choices
            return (self.choices.index(value) + 0.5) / len(self.choices) if known else None
        number = finite(value)
        if number is None or (self.log and number <= 0):
            return None
        low, high = self.low, self.high
        if self.log:
            low, high, number = math.log(low), math.log(high), math.log(number)
        return min(1.0, max(0.0, (number - low) / (high - low))) if high > low else 0.5


def label_of(name: str) -> str:
    """The symbol of the equations for a dotted field, else the field's own words."""
    return LABELS.get(name, name.rpartition(".")[2].replace("_", " "))


def axes_of(search: Search) -> list[Axis]:
    """One axis for each hyper-parameter of the trials, in the order of the search space."""
    tried = {name: None for trial in search.trials for name in trial.params}
    names = [name for name in search.space if name in tried]
    names += [name for name in tried if name not in search.space]
    return [_axis(name, search.space.get(name, {}), search.trials) for name in names]


def value_text(value: Any) -> str:
    """A value as one reads it on an axis or in a table."""
    number = finite(value)
    if number is None:
        return str(value)
    text = f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
    if "e" in text:
        mantissa, power = text.split("e")
        text = f"{mantissa}e{int(power)}"
    return text.replace("-", "\N{MINUS SIGN}")


def _axis(name: str, spec: dict[str, Any], trials: Sequence[TrialRecord]) -> Axis:
    values = [trial.params[name] for trial in trials if trial.params.get(name) is not None]
    numbers = [number for value in values if (number := finite(value)) is not None]
    choices = spec.get("choices")
    if isinstance(choices, list) or not values or len(numbers) < len(values):
        known = list(choices) if isinstance(choices, list) else []
        known += sorted({value for value in values if value not in known}, key=str)
        if all(finite(choice) is not None for choice in known):
            known.sort()
        return Axis(name, 0.0, 1.0, False, tuple(known))
    bounds = [bound for end in ("low", "high") if (bound := finite(spec.get(end))) is not None]
    low, high = min(numbers + bounds), max(numbers + bounds)
    return Axis(name, low, high, low > 0 and spec.get("log") is True)
