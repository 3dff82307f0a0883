"""Search folders of known functions, for the tests of `python -m tune analyse`."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune.study import open_journal, open_study

SPACE: dict[str, dict[str, Any]] = {
    "model.temperature": {"low": 0.01, "high": 1.0, "log": True},
    "loss.entropy": {"low": 0.01, "high": 10.0, "log": True},
    "training.learning_rate": {"low": 0.0001, "high": 0.1, "log": True},
    "model.num_clusters": {"choices": [50, 100, 200]},
}
EPOCHS = 6
STATES = {
    "running": TrialState.RUNNING,
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "collapsed": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
DEFAULT = {
    "model.temperature": 0.3,
    "loss.entropy": 0.5,
    "training.learning_rate": 0.001,
    "model.num_clusters": 100,
}


def quality(params: dict[str, Any]) -> float:
    """Falls from 0.4 with the distance of τ from 0.1; λ_ent and the others do not matter."""
    return 0.4 - 0.25 * (math.log10(params["model.temperature"]) + 1) ** 2


def make_search(
    folder: Path,
    *,
    trials: int = 60,
    seed: int = 0,
    value: Callable[[dict[str, Any]], float] = quality,
    reaches: Callable[[float], int] = lambda score: EPOCHS if score > 0.35 else 2,
    finals: list[dict[str, Any]] | None = None,
) -> Path:
    """A search of `trials` random trials; `reaches` tells the last epoch of one by its quality.

    Objectives grow with the epochs and carry noise of 0.005.
    """
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    content = {"objective": "zsl", "trials": trials, "space": SPACE}
    (folder / "search.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    made = []
    for number in range(trials):
        params = drawn(generator) if number else DEFAULT
        score = value(params)
        epochs = range(1, (reaches(score) if number else EPOCHS) + 1)
        curve = [
            score * (1 - math.exp(-epoch / 2)) + 0.005 * generator.normal() for epoch in epochs
        ]
        state = "finished" if len(curve) == EPOCHS else "stopped"
        made.append(one_trial(params, curve, state))
    write_trials(folder, made)
    if finals is not None:
        write(folder / "final.json", {"version": 1, "objective": "zsl", "rows": finals})
    (folder / "best.yaml").write_text("loss:\n  entropy: 0.5\n")
    write(folder / "search.json", {"trials_per_minute": 12.5, "seconds": 300, "concurrent": 2})
    return folder


def drawn(generator: np.random.Generator) -> dict[str, Any]:
    """Parameters drawn evenly from SPACE."""
    params: dict[str, Any] = {}
    for name, spec in SPACE.items():
        if "choices" in spec:
            params[name] = spec["choices"][generator.integers(len(spec["choices"]))]
        else:
            low, high = math.log(spec["low"]), math.log(spec["high"])
            params[name] = math.exp(generator.uniform(low, high))
    return params


def one_trial(
    params: dict[str, Any] | None = None,
    curve: Sequence[float] = (),
    state: str = "finished",
    cause: str = "told",
) -> FrozenTrial:
    """A trial with the objectives of its epochs, as the driver of a search records it."""
    params = DEFAULT if params is None else params
    attributes: dict[str, Any] = {
        f"epoch {epoch}": {"loss": 3.0, "used_clusters": 40, "nmi": 0.3, "seconds": 1.5}
        for epoch in range(1, len(curve) + 1)
    }
    if state in ("failed", "collapsed"):
        attributes[state] = cause
    distributions: dict[str, BaseDistribution] = {}
    for name, value in params.items():
        spec = SPACE.get(name, {"choices": [value]})
        distributions[name] = (
            CategoricalDistribution(spec["choices"])
            if "choices" in spec
            else FloatDistribution(spec["low"], spec["high"], log=True)
        )
    return create_trial(
        state=STATES[state],
        value=curve[-1] if state == "finished" else None,
        params=params,
        distributions=distributions,
        user_attrs=attributes,
        intermediate_values=dict(enumerate(curve, 1)),
    )


def write_trials(folder: Path, trials: Iterable[FrozenTrial], study: str = "search") -> None:
    """Append trials to the journal of a search."""
    attributes = {"epochs": EPOCHS, "source": "cache"}
    opened = open_study(open_journal(folder, write=True), study, attributes)
    opened.add_trials(trials)


def write_trial(folder: Path, *args: Any, **fields: Any) -> None:
    """Append one trial, see `one_trial`."""
    write_trials(folder, [one_trial(*args, **fields)])


def final_row(name: str, validation: float, test: float | None, **fields: Any) -> dict[str, Any]:
    """A row of final.json."""
    results = None if test is None else {"zsl": test, "seen": 0.5, "unseen": 0.2}
    if results is not None:
        results["harmonic_mean"] = 0.29
    row = {"name": name, "params": DEFAULT, "validation": validation, "test": results}
    return {**row, "model": "prototype", "run": f"final/{name}", **fields}


def write(path: Path, content: Any) -> None:
    """Write JSON."""
    path.write_text(json.dumps(content))
