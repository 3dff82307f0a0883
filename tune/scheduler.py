"""ASHA over epochs that knows the trials of earlier attempts, and lets the default end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from tune.searcher import DEFAULT
from tune.study import TrialRecord
from tune.trial.trainable import ended


@dataclass(frozen=True)
class _Known:
    """As much of a trial as ASHA looks at."""

    trial_id: str


class Halving(ASHAScheduler):
    """Asynchronous successive halving (Li et al., MLSys 2020) on `objective` over `epoch`.

    The default configuration is never stopped: it is what the winner is compared with. A trial
    that has collapsed or failed is stopped at once and enters no rung.
    """

    def __init__(
        self,
        epochs: int,
        grace_epochs: int,
        reduction_factor: int,
        records: Sequence[TrialRecord] = (),
    ) -> None:
        super().__init__(
            time_attr="epoch",
            metric="objective",
            mode="max",
            max_t=epochs,
            grace_period=grace_epochs,
            reduction_factor=reduction_factor,
        )
        for record in records:
            if record.ended:
                self._replay(record)

    def _replay(self, record: TrialRecord) -> None:
        known: Any = _Known(f"before-{record.name}")
        self.on_trial_add(None, known)  # type: ignore[arg-type]
        for row in record.history:
            if row.get("objective") is not None and not ended(row):
                super().on_trial_result(None, known, row)  # type: ignore[arg-type]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        if ended(result):
            return TrialScheduler.STOP
        action = super().on_trial_result(tune_controller, trial, result)
        never_stopped = trial.config["trial"] == DEFAULT and result["epoch"] < self._max_t
        return TrialScheduler.CONTINUE if never_stopped else action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Forget a trial; ASHA would enter a collapsed one into its rungs here."""
        if ended(result):
            self._trial_info.pop(trial.trial_id, None)
        else:
            super().on_trial_complete(tune_controller, trial, result)
