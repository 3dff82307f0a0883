"""What a search may vary, and how a choice becomes a configuration."""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from vgse.config import RunConfig, leaves, to_dict, validate
from vgse.errors import UserError

if TYPE_CHECKING:  # torch and Optuna take seconds: not for --help
    import optuna

    from distributed.setup import Prepared

_FIXED = {
    ("data.", "backbone."): "one feature cache serves all trials",
    ("knowledge",): "its weights are chosen in every trial",
    ("evaluation.",): "all trials are judged alike",
    ("cluster.", "tracking.", "storage"): "it decides nothing that is learned",
    ("training.epochs",): "ASHA decides how long a trial trains",
    ("training.classes",): "validation classes stay out of training",
    ("training.checkpoint",): "a trial makes a checkpoint every epoch",
}


@dataclass(frozen=True)
class Dimension:
    """The values of one field: a range, or choices."""

    low: float | None = None
    high: float | None = None
    log: bool = False  # draw evenly on a logarithmic scale
    choices: list[bool | int | float | str] | None = None  # in place of a range

    @property
    def highest(self) -> float:
        """The largest number that can be drawn."""
        return max(float(v) for v in (self.high, *(self.choices or [])) if v is not None)

    def holds(self, value: Any) -> bool:
        """Whether a value can be drawn."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None and self.high is not None, "check_space comes first"
        return not isinstance(value, str) and self.low <= value <= self.high


def default_space() -> dict[str, Dimension]:
    """The four loss weights down to almost nothing, D_v, τ, the learning rate and α."""
    return {
        "loss.classification": Dimension(0.03, 10, log=True),
        "loss.semantic": Dimension(0.003, 10, log=True),
        "loss.consistency": Dimension(0.001, 3, log=True),
        "loss.entropy": Dimension(0.01, 10, log=True),
        "model.num_clusters": Dimension(choices=[50, 100, 150, 200, 300]),
        "model.temperature": Dimension(0.02, 0.3, log=True),
        "training.learning_rate": Dimension(1e-4, 3e-2, log=True),
        "relations.alpha": Dimension(choices=[0.0, -0.05, -0.2, -1.0]),
    }


def with_params(config: RunConfig, params: Mapping[str, Any]) -> RunConfig:
    """A copy of `config` with dotted fields set."""
    for name, value in params.items():
        section, _, field_name = name.partition(".")
        if field_name:
            value = replace(getattr(config, section), **{field_name: value})
        config = replace(config, **{section: value})
    return config


def draw_params(
    trial: "optuna.Trial", config: RunConfig, space: Mapping[str, Dimension]
) -> dict[str, Any]:
    """Values that Optuna suggests for a trial, in the order of the fields' names."""
    params: dict[str, Any] = {}
    for name, dimension in sorted(space.items()):
        low, high, log = dimension.low, dimension.high, dimension.log
        if dimension.choices is not None:
            params[name] = trial.suggest_categorical(name, dimension.choices)
            continue
        assert low is not None and high is not None, "check_space comes first"
        if isinstance(attrgetter(name)(config), int):
            params[name] = trial.suggest_int(name, int(low), int(high), log=log)
        else:
            params[name] = trial.suggest_float(name, low, high, log=log)
    return params


def check_space(config: RunConfig, space: Mapping[str, Dimension]) -> None:
    """See that every value that can be drawn makes a valid configuration."""
    if not space:
        raise UserError("space is empty; name at least one field, such as loss.entropy")
    known = dict(leaves(to_dict(config)))
    for name, dimension in space.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "see python -m distributed train --help"
            raise UserError(f"space.{name}: a run has no such field; {hint}")
        for fixed, why in _FIXED.items():
            if name.startswith(fixed):
                raise UserError(f"space.{name}: {why}; set it under run instead")
        _check_dimension(name, dimension, known[name], _words_for(name))
    for name, value in _outermost(config, space):
        try:
            validate(with_params(config, {name: value}))
        except UserError as error:
            raise UserError(f"space.{name}: {error}") from None


def _words_for(name: str) -> tuple[str, ...]:
    """The words that a field of numbers takes as well, such as auto."""
    section, _, field = name.rpartition(".")
    owner = get_type_hints(RunConfig)[section] if section else RunConfig
    parts = get_args(get_type_hints(owner)[field])
    return tuple(word for part in parts for word in get_args(part)) if float in parts else ()


def _check_dimension(name: str, dimension: Dimension, value: Any, words: tuple[str, ...]) -> None:
    low, high, choices = dimension.low, dimension.high, dimension.choices
    kind = "float" if words else type(value).__name__
    problem = None
    if choices is not None:
        kinds: Any = (int, float) if kind == "float" else type(value)
        wrong = [
            choice
            for choice in choices
            if choice not in words
            and (not isinstance(choice, kinds) or isinstance(choice, bool) != (kind == "bool"))
        ]
        if low is not None or high is not None:
            problem = "has choices and a range; keep one of them"
        elif not choices:
            problem = "choices are empty; give at least one value"
        elif len(set(choices)) != len(choices):
            problem = "choices hold a value twice; keep one"
        elif wrong:
            problem = f"{wrong[0]!r} is no {kind}; the field takes {' or '.join([kind, *words])}"
    elif low is None or high is None:
        problem = "give low and high, or choices"
    elif kind not in ("int", "float"):
        problem = "is not a number; give choices in place of low and high"
    elif not (math.isfinite(low) and math.isfinite(high) and low < high):
        problem = f"low is {low} and high is {high}; low must be the smaller"
    elif dimension.log and low <= 0:
        problem = f"low is {low}; a logarithmic scale needs more than 0"
    elif kind == "int" and (low != int(low) or high != int(high)):
        problem = f"takes whole numbers; low is {low} and high is {high}"
    if problem:
        raise UserError(f"space.{name}: {problem}")


def check_space_fits(
    config: RunConfig, space: Mapping[str, Dimension], prepared: "Prepared"
) -> None:
    """See that every value that can be drawn fits the data."""
    from distributed.requirements import check_model

    for name, value in _outermost(config, space):
        try:
            check_model(with_params(config, {name: value}), prepared)
        except UserError as error:
            raise UserError(f"space.{name}: {error}") from None


def _outermost(
    config: RunConfig, space: Mapping[str, Dimension]
) -> Iterator[tuple[str, bool | int | float | str]]:
    """The choices of every field, or both ends of its range."""
    for name, dimension in space.items():
        kind = int if isinstance(attrgetter(name)(config), int) else float
        ends = [kind(end) for end in (dimension.low, dimension.high) if end is not None]
        for value in dimension.choices or ends:
            yield name, value
