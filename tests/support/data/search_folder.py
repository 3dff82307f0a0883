"""Search folders of known functions, for the tests of `python -m tune analyse`."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from tune.study import open_journal, open_study, row_key

SPACE: dict[str, dict[str, Any]] = {
    "model.temperature": {"low": 0.01, "high": 1.0, "log": True},
    "loss.entropy": {"low": 0.01, "high": 10.0, "log": True},
    "training.learning_rate": {"low": 0.0001, "high": 0.1, "log": True},
    "model.num_clusters": {"choices": [50, 100, 200]},
}
EPOCHS = 6
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
    study_of(folder)
    content = {"objective": "zsl", "trials": trials, "space": SPACE}
    (folder / "search.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    for number in range(trials):
        params = drawn(generator) if number else DEFAULT
        score = value(params)
        epochs = range(1, (reaches(score) if number else EPOCHS) + 1)
        history = [
            {
                "epoch": epoch,
                "objective": score * (1 - math.exp(-epoch / 2)) + 0.005 * generator.normal(),
                "loss": 3.0,
                "used_clusters": 40,
                "nmi": 0.3,
                "seconds": 1.5,
            }
            for epoch in epochs
        ]
        state = "finished" if len(history) == EPOCHS else "stopped"
        write_trial(folder, number, params=params, history=history, state=state)
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


def study_of(folder: Path) -> optuna.Study:
    """The study of a search whose trials have EPOCHS epochs."""
    folder.mkdir(exist_ok=True)
    attributes = {"epochs": EPOCHS, "source": "cache"}
    return open_study(open_journal(folder, write=True), folder.name, attributes)


def write_trial(
    folder: Path,
    number: int,
    *,
    state: str = "finished",
    cause: str = "",
    params: dict[str, Any] = DEFAULT,
    history: Sequence[dict[str, Any]] = (),
) -> None:
    """Add a trial to the journal; `number` is how many there are."""
    states = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL}
    states |= {"running": TrialState.RUNNING}
    rows = {row_key(row["epoch"]): dict(row) for row in history}
    study = study_of(folder)
    study.add_trial(
        create_trial(
            state=states.get(state, TrialState.PRUNED),
            value=history[-1]["objective"] if state == "finished" else None,
            params=params,
            distributions={name: distribution(name, value) for name, value in params.items()},
            user_attrs=rows | ({state: cause} if cause or state == "collapsed" else {}),
            intermediate_values={row["epoch"]: row["objective"] for row in history},
        )
    )
    assert len(study.get_trials(deepcopy=False)) == number + 1


def distribution(name: str, value: Any) -> BaseDistribution:
    """What a parameter is drawn from."""
    spec = SPACE.get(name, {"choices": [value]})
    if "choices" in spec:
        return CategoricalDistribution(spec["choices"])
    return FloatDistribution(spec["low"], spec["high"], log=True)


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
