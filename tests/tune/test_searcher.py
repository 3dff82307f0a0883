"""What Optuna and ASHA know of trials, those of earlier attempts among them."""

import warnings
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tune.callbacks import death_cause
from tune.config import SearchConfig
from tune.records import TrialRecord
from tune.scheduler import Halving
from tune.searcher import Proposals, ending_of
from tune.space import Dimension, distributions


def records_of(*states: tuple[str, list[float]]) -> list[TrialRecord]:
    found = []
    for number, (state, values) in enumerate(states):
        record = TrialRecord(f"{number:04d}", {"loss.entropy": 0.2 + number / 10}, 9, state=state)
        for epoch, value in enumerate(values, 1):
            record.add({"epoch": epoch, "objective": value})
        found.append(record)
    return found


def proposals(records: list[TrialRecord]) -> Proposals:
    config = SearchConfig()
    space = distributions(config.run, {"loss.entropy": Dimension(0.1, 2)})
    return Proposals(space, {"loss.entropy": 0.5}, 9, 0, records)


def test_optuna_hears_which_trials_ended_early() -> None:
    told = proposals(
        records_of(
            ("finished", [0.1, 0.4]), ("stopped", [0.2]), ("collapsed", [0.1]), ("failed", [])
        )
    )._study.trials
    assert [trial.state for trial in told] == [
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL,
    ]  # fmt: skip
    assert told[0].value == 0.4 and told[1].intermediate_values == {1: 0.2}


def test_interrupted_trials_come_before_new_ones_and_names_go_on() -> None:
    source = proposals(records_of(("finished", [0.1]), ("running", [0.2]), ("running", [])))
    first, second, third = (source.suggest(f"ray-{n}") for n in range(3))
    assert (first["trial"], second["trial"], third["trial"]) == ("0001", "0002", "0003")
    assert first["params"] == {"loss.entropy": pytest.approx(0.3)}
    assert proposals([]).suggest("ray-0") == {"trial": "0000", "params": {"loss.entropy": 0.5}}


def test_a_default_outside_of_the_space_is_run_all_the_same() -> None:
    config = SearchConfig()
    space = distributions(config.run, {"loss.entropy": Dimension(1, 2)})
    source = Proposals(space, {"loss.entropy": 0.5}, 9, 0)
    assert source.suggest("a")["params"] == {"loss.entropy": 0.5}
    assert source._study.trials == []  # it is nothing that TPE could learn from
    source.on_trial_result("a", {"epoch": 1, "objective": 0.3})
    source.on_trial_complete("a", {"epoch": 9})
    assert 1 <= source.suggest("b")["params"]["loss.entropy"] <= 2


def test_rows_that_are_told_again_change_nothing() -> None:
    source = proposals([])
    source.suggest("a")
    warnings.simplefilter("error")  # Optuna warns of what it has heard before
    for epoch, value in ((1, 0.1), (2, 0.2), (1, 0.1), (2, 0.2), (9, 0.3)):
        source.on_trial_result("a", {"epoch": epoch, "objective": value})
    source.on_trial_complete("a", {})
    trial = source._study.trials[0]
    assert trial.intermediate_values == {1: 0.1, 2: 0.2, 9: 0.3} and trial.value == 0.3
    assert trial.state == TrialState.COMPLETE


class Known:
    """As much of a trial as a scheduler looks at."""

    def __init__(self, name: str) -> None:
        self.trial_id, self.config = f"ray-{name}", {"trial": name}


def decision(scheduler: Halving, name: str, *rows: dict[str, Any]) -> str:
    trial = Known(name)
    scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
    return [scheduler.on_trial_result(None, trial, row) for row in rows][-1]


def test_asha_compares_with_the_trials_of_earlier_attempts() -> None:
    before = records_of(*[("finished", [0.5] * 9)] * 3)
    poor = {"epoch": 1, "objective": 0.1}
    assert decision(Halving(9, 1, 3, before), "0007", poor) == "STOP"
    assert decision(Halving(9, 1, 3), "0007", poor) == "CONTINUE"  # nothing to compare with
    assert decision(Halving(9, 2, 3, before), "0007", poor) == "CONTINUE"  # grace
    assert decision(Halving(9, 1, 3, before), "0007", poor | {"objective": 0.6}) == "CONTINUE"


def test_the_default_goes_on_to_its_last_epoch_and_no_further() -> None:
    scheduler = Halving(9, 1, 3, records_of(*[("finished", [0.5] * 9)] * 3))
    assert decision(scheduler, "0000", {"epoch": 1, "objective": 0.1}) == "CONTINUE"
    assert decision(scheduler, "0000", {"epoch": 9, "objective": 0.1}) == "STOP"


def test_a_collapsed_trial_is_stopped_and_enters_no_rung() -> None:
    scheduler = Halving(9, 1, 3)
    row = {"epoch": 1, "objective": 0.9, "collapsed": "dead clusters"}
    assert decision(scheduler, "0001", row) == "STOP"
    assert decision(scheduler, "0002", {"epoch": 1, "objective": 0.1}) == "CONTINUE"
    assert ending_of(row, 9) == ("collapsed", "dead clusters")


def test_deaths_of_processes_have_a_plain_cause() -> None:
    died = "The actor died unexpectedly before finishing this task."
    assert "was killed" in death_cause(died)
    assert "out of memory" in death_cause("Task was killed due to the node running low on memory.")
    assert death_cause("") == "it failed without a word"


def test_optuna_keeps_quiet() -> None:
    proposals([])
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
