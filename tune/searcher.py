"""Ray's OptunaSearch on the search's own journal, told by epoch and of how each trial ended."""

import math
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from tune.space import Dimension, draw_params
from tune.study import open_study
from tune.trial.evaluator import ROW
from vgse.config import RunConfig


class JournalSearch(OptunaSearch):
    """Proposes the default once, then what TPE draws; interrupted trials before new ones.

    Each attempt draws other points. Ray's own class tells Optuna that a trial that ASHA stopped is
    complete, counts reports in place of epochs, knows no interrupted trial, and pickles itself.
    """

    def __init__(
        self,
        storage: JournalStorage,
        name: str,
        run: RunConfig,
        space: Mapping[str, Dimension],
        *,
        source: str = "cache",
        seed: int = 0,
    ) -> None:
        self._run, self._dimensions = run, space
        attributes = {"epochs": run.training.epochs, "source": source}
        self.study = open_study(storage, name, attributes)
        trials = self.study.get_trials(deepcopy=False)
        study_id = storage.get_study_id_from_name(self.study.study_name)
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
                storage.set_trial_state_values(trial_id, TrialState.WAITING)
        if not trials:
            default = {field: attrgetter(field)(run) for field in sorted(space)}
            outside = {field: v for field, v in default.items() if not space[field].holds(v)}
            inside = {field: v for field, v in default.items() if field not in outside}
            self.study.enqueue_trial(inside, {"outside_space": outside} if outside else None)
        # Trials that run at the same time are taken for bad, so that TPE does not repeat them.
        sampler = optuna.samplers.TPESampler(seed=seed + 7919 * len(trials), constant_liar=True)
        self._asked: dict[str, optuna.Trial] = {}
        super().__init__(
            self._draw,
            metric="objective",
            mode="max",
            sampler=sampler,
            study_name=self.study.study_name,
            storage=storage,
        )

    def _draw(self, trial: optuna.Trial) -> dict[str, Any]:
        """A trial's name and parameters; those outside of the space are the default's."""
        outside = trial.user_attrs.get("outside_space", {})
        within = {k: v for k, v in self._dimensions.items() if k not in outside}
        params = draw_params(trial, self._run, within)
        return {"trial": f"{trial.number:04d}", "params": {**outside, **params}, "asked": trial}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The configuration of a trial: its name and its parameters."""
        drawn = super().suggest(trial_id)
        assert drawn is not None
        self._asked[trial_id] = drawn["asked"]
        return {"trial": drawn["trial"], "params": drawn["params"]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record the row of an epoch, unless an earlier attempt has done so."""
        trial, epoch = self._asked[trial_id], result["epoch"]
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if result.get("objective") is None or epoch in known:
            return
        row = {name: _finite(result[name]) for name in ROW if name in result}
        trial.set_user_attr(f"epoch {epoch}", row)  # all but the objective
        super().on_trial_result(trial_id, {**result, "training_iteration": epoch})

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a trial ended that came to an end by itself or by ASHA."""
        if error or not result or "epoch" not in result:  # `fail` follows, or a later attempt
            return
        self.on_trial_result(trial_id, result)
        for state in ("failed", "collapsed"):
            if result.get(state):
                self._asked[trial_id].set_user_attr(state, str(result[state]))
        ended = result["epoch"] >= self._run.training.epochs and not result.get("collapsed")
        complete = result if ended and not result.get("failed") else None
        super().on_trial_complete(trial_id, complete, error=bool(result.get("failed")))

    def fail(self, trial_id: str, cause: str) -> None:
        """Record that a trial's process died once too often."""
        self._asked[trial_id].set_user_attr("failed", cause)
        super().on_trial_complete(trial_id, error=True)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a resume starts from the journal."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, see `__getstate__`."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `__getstate__`."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
