"""Optuna's TPE as a Ray Tune searcher that knows the trials of earlier attempts.

Ray's own OptunaSearch tells Optuna a trial that ASHA stopped as if it had done all its epochs.
Here Optuna hears that it was pruned, and at which epoch, so that its sampler compares like with
like.
"""

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from tune.records import TrialRecord, trial_name

DEFAULT = trial_name(0)
"""The trial of the configuration that is searched around."""


def ending_of(row: Mapping[str, Any], epochs: int) -> tuple[str, str | None]:
    """State and cause of a trial whose last row this is."""
    if row.get("failed"):
        return "failed", str(row["failed"])
    if row.get("collapsed"):
        return "collapsed", str(row["collapsed"])
    if row.get("epoch", 0) >= epochs:
        return "finished", None
    return "stopped", f"not among the best after epoch {row.get('epoch', 0)}"


class Proposals(Searcher):
    """Proposes interrupted trials first, then the default, then what TPE draws."""

    def __init__(
        self,
        space: dict[str, BaseDistribution],
        default: Mapping[str, Any],
        epochs: int,
        seed: int,
        records: Sequence[TrialRecord] = (),
    ) -> None:
        """Start from the trials that are there already.

        Args:
            space: dotted fields and what they are drawn from.
            default: values of these fields in the configuration that is searched around.
            epochs: of a trial that nobody stops.
            seed: of the sampler.
            records: trials of earlier attempts, running ones among them.
        """
        super().__init__(metric="objective", mode="max")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._epochs = space, epochs
        # Trials that run at the same time are taken for bad, so that TPE does not repeat them.
        sampler = optuna.samplers.TPESampler(seed=seed + 7919 * len(records), constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        for record in records:
            if record.ended:
                self._tell_ended(record)
        waiting = [(record.trial, record.params) for record in records if not record.ended]
        if DEFAULT not in {record.trial for record in records}:
            waiting.insert(0, (DEFAULT, dict(default)))
        self._waiting = deque(waiting)
        self._next = max((int(record.trial) for record in records), default=0) + 1
        self._asked: dict[str, optuna.Trial | None] = {}
        self._last: dict[str, dict[str, Any]] = {}
        self._reported: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The configuration of a trial: its name and its parameters."""
        if self._waiting:
            name, params = self._waiting.popleft()
            self._asked[trial_id] = self._ask(params) if self._fits(params) else None
        else:
            name, self._next = trial_name(self._next), self._next + 1
            asked = self._ask(None)
            self._asked[trial_id], params = asked, dict(asked.params)
        self._last[trial_id] = {}
        return {"trial": name, "params": params}

    def _ask(self, params: Mapping[str, Any] | None) -> optuna.Trial:
        if params is not None:
            self._study.enqueue_trial(dict(params))
        return self._study.ask(self._space)

    def _fits(self, params: Mapping[str, Any]) -> bool:
        """Whether Optuna's space holds these values; the default may lie outside of it."""
        try:
            create_trial(value=0.0, params=dict(params), distributions=self._space)
        except ValueError:
            return False
        return True

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take an epoch's row."""
        self._last[trial_id] = result
        trial, epoch = self._asked[trial_id], int(result.get("epoch", 0))
        if trial is None or result.get("objective") is None:
            return
        if epoch > self._reported.get(trial_id, 0):  # else told again by a second attempt
            trial.report(float(result["objective"]), epoch)
            self._reported[trial_id] = epoch

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a trial ended."""
        trial, last = self._asked.pop(trial_id), self._last.pop(trial_id)
        if trial is None:
            return
        state = "failed" if error or not last else ending_of(last, self._epochs)[0]
        if state == "finished":
            self._study.tell(trial, float(last["objective"]))
        else:
            self._study.tell(trial, state=_STATES[state])

    def _tell_ended(self, record: TrialRecord) -> None:
        if not self._fits(record.params):
            return
        scored = [row for row in record.history if row.get("objective") is not None]
        seen = {row["epoch"]: row["objective"] for row in scored}
        state = _STATES[record.state]
        if state == TrialState.PRUNED and not seen:
            state = TrialState.FAIL
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.add_trial(
                create_trial(
                    state=state,
                    value=record.objective if state == TrialState.COMPLETE else None,
                    params=record.params,
                    distributions=self._space,
                    intermediate_values=seen,
                )
            )

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a resume starts from the trials' files."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""


_STATES = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "collapsed": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
