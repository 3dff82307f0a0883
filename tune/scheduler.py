"""ASHA over epochs that knows the trials of earlier attempts, and lets the default end."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from tune.study import DEFAULT, TrialRecord
from tune.trial.trainable import ended


class Halving(ASHAScheduler):
    """Asynchronous successive halving (Li et al., MLSys 2020) on `objective` over `epoch`.

    The default configuration is never stopped, nor is a trial in its last epoch, which ends by
    itself; a collapsed or failed trial is, and enters no rung.
    """

    def __init__(self, records: Sequence[TrialRecord] = (), **options: Any) -> None:
        super().__init__(time_attr="epoch", metric="objective", mode="max", **options)
        nobody: Any = None
        for record in records:
            rows = record.history[:-1] if record.state == "collapsed" else record.history
            if record.ended:
                known: Any = SimpleNamespace(trial_id=f"before-{record.name}")
                self.on_trial_add(nobody, known)
                for row in rows:
                    super().on_trial_result(nobody, known, row)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        if ended(result):
            return TrialScheduler.STOP
        if result["epoch"] >= self._max_t:
            # Ray Tune would kill the process while Ray Train takes its workers down, whose
            # placement group then stays as long as the driver, or until the dashboard answers.
            return TrialScheduler.CONTINUE
        action = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if trial.config["trial"] == DEFAULT else action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Forget a trial; ASHA would enter a collapsed one into its rungs here."""
        if ended(result):
            self._trial_info.pop(trial.trial_id, None)
        else:
            super().on_trial_complete(tune_controller, trial, result)
