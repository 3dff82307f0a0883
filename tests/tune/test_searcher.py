"""What Optuna and ASHA know of trials, those of earlier attempts among them."""

import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import TrialState

from tune.callbacks import death_cause
from tune.scheduler import Halving
from tune.searcher import JournalSearch
from tune.space import Dimension
from tune.study import TrialRecord, open_journal, trials_of
from vgse.config import RunConfig, TrainingConfig

RUN = RunConfig(training=TrainingConfig(epochs=9))
SPACE = {"loss.entropy": Dimension(0.1, 2)}


def searcher(folder: Path, space: dict[str, Dimension] = SPACE, seed: int = 0) -> JournalSearch:
    return JournalSearch(open_journal(folder, write=True), "search", RUN, space, seed=seed)


def run_trial(source: JournalSearch, trial_id: str, values: list[float], **end: Any) -> None:
    """A trial as Ray Tune runs it: the row at which it is stopped comes with its end alone."""
    source.suggest(trial_id)
    rows = [{"epoch": epoch, "objective": value} for epoch, value in enumerate(values, 1)]
    for row in rows[:-1]:
        source.on_trial_result(trial_id, row)
    source.on_trial_complete(trial_id, {**rows[-1], **end})


def states(source: JournalSearch) -> list[TrialState]:
    return [trial.state for trial in source.study.trials]


def test_optuna_hears_how_each_trial_ended_and_by_epoch(tmp_path: Path) -> None:
    source = searcher(tmp_path)
    run_trial(source, "a", [0.1] * 8 + [0.4], loss=2.0, seconds=1.5)
    run_trial(source, "b", [0.2, 0.3])
    run_trial(source, "c", [0.1], collapsed="dead clusters")
    source.suggest("d")
    source.on_trial_complete("d", {"epoch": 0, "failed": "out of memory"})
    source.suggest("e")
    source.on_trial_complete("e", error=True)
    source.fail("e", "its node was lost")
    assert states(source) == [
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL,
    ]  # fmt: skip
    trials = source.study.trials
    assert trials[0].value == 0.4 and trials[1].intermediate_values == {1: 0.2, 2: 0.3}
    records = trials_of(source.study)
    assert [record.state for record in records] == [
        "finished", "stopped", "collapsed", "failed", "failed",
    ]  # fmt: skip
    assert [record.cause for record in records[2:]] == [
        "dead clusters", "out of memory", "its node was lost",
    ]  # fmt: skip
    assert records[0].history[-1] == {"epoch": 9, "objective": 0.4, "loss": 2.0, "seconds": 1.5}
    assert (records[0].objective, records[0].epoch, records[0].seconds) == (0.4, 9, 1.5)


def test_the_default_comes_first_and_once(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    assert first.suggest("a") == {"trial": "0000", "params": {"loss.entropy": 0.5}}
    assert first.suggest("b")["trial"] == "0001"
    again = searcher(tmp_path)
    assert [again.suggest(name)["trial"] for name in "abc"] == ["0000", "0001", "0002"]


def test_interrupted_trials_go_on_with_their_names_and_parameters(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    run_trial(first, "a", [0.5] * 9)
    before = [first.suggest(trial_id) for trial_id in "bc"]
    first.on_trial_result("b", {"epoch": 1, "objective": 0.2})
    again = searcher(tmp_path)
    assert [again.suggest(trial_id) for trial_id in "xy"] == before
    for epoch in (1, 2):  # the first is told again, from the trial's checkpoint
        again.on_trial_result("x", {"epoch": epoch, "objective": 0.2 * epoch})
    assert again.study.trials[1].intermediate_values == {1: 0.2, 2: 0.4}
    assert again.suggest("z")["trial"] == "0003"


def test_each_attempt_draws_other_points(tmp_path: Path) -> None:
    """With nothing learned in between, a seed alone would give the same ones again."""
    first = searcher(tmp_path, seed=3)
    drawn = [first.suggest(trial_id)["params"] for trial_id in "abc"]
    again = searcher(tmp_path, seed=3)
    assert [again.suggest(trial_id)["params"] for trial_id in "abc"] == drawn
    assert again.suggest("d")["params"] not in drawn


def test_a_default_outside_of_the_space_is_run_all_the_same(tmp_path: Path) -> None:
    space = {"loss.entropy": Dimension(1, 2), "model.num_clusters": Dimension(choices=[12, 16])}
    source = searcher(tmp_path, space)
    default = {"loss.entropy": 0.5, "model.num_clusters": 150}
    assert source.suggest("a")["params"] == default
    source.on_trial_complete("a", {"epoch": 9, "objective": 0.3})
    assert trials_of(source.study)[0].params == default
    assert 1 <= source.suggest("b")["params"]["loss.entropy"] <= 2


def test_rows_that_are_told_again_change_nothing(tmp_path: Path) -> None:
    source = searcher(tmp_path)
    source.suggest("a")
    warnings.simplefilter("error")  # Optuna warns of what it has heard before
    for epoch, value in ((1, 0.1), (2, 0.2), (1, 0.1), (2, 0.2)):
        source.on_trial_result("a", {"epoch": epoch, "objective": value})
    source.on_trial_complete("a", {"epoch": 9, "objective": 0.3})
    trial = source.study.trials[0]
    assert trial.intermediate_values == {1: 0.1, 2: 0.2, 9: 0.3} and trial.value == 0.3


def test_the_searcher_is_not_pickled(tmp_path: Path) -> None:
    source = searcher(tmp_path)
    source.save(str(tmp_path / "saved"))
    assert (tmp_path / "saved").read_bytes() == b""
    assert len(pickle.dumps(source)) < 100
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR


def records_of(count: int) -> list[TrialRecord]:
    history = [{"epoch": epoch, "objective": 0.5} for epoch in range(1, 10)]
    return [
        TrialRecord(f"{number:04d}", {}, "finished", "", history, 9, "cache")
        for number in range(count)
    ]


class Known:
    """As much of a trial as a scheduler looks at."""

    def __init__(self, name: str) -> None:
        self.trial_id, self.config = f"ray-{name}", {"trial": name}


def decision(scheduler: Halving, name: str, *rows: dict[str, Any]) -> str:
    trial = Known(name)
    scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
    return [scheduler.on_trial_result(None, trial, row) for row in rows][-1]


def halving(records: list[TrialRecord] | None = None, grace: int = 1) -> Halving:
    return Halving(records or [], max_t=9, grace_period=grace, reduction_factor=3)


def test_asha_compares_with_the_trials_of_earlier_attempts() -> None:
    before = records_of(3)
    poor = {"epoch": 1, "objective": 0.1}
    assert decision(halving(before, grace=1), "0007", poor) == "STOP"
    assert decision(halving(grace=1), "0007", poor) == "CONTINUE"  # nothing to compare with
    assert decision(halving(before, grace=2), "0007", poor) == "CONTINUE"  # grace
    assert decision(halving(before, grace=1), "0007", poor | {"objective": 0.6}) == "CONTINUE"


def test_the_default_goes_on_to_its_last_epoch_which_every_trial_ends_by_itself() -> None:
    scheduler = halving(records_of(3), grace=1)
    poor = {"epoch": 1, "objective": 0.1}
    assert decision(scheduler, "0000", poor) == "CONTINUE"
    for name in ("0000", "0001"):
        assert decision(scheduler, name, poor | {"epoch": 9}) == "CONTINUE"


def test_a_collapsed_trial_is_stopped_and_enters_no_rung() -> None:
    scheduler = halving(grace=1)
    row = {"epoch": 1, "objective": 0.9, "collapsed": "dead clusters"}
    assert decision(scheduler, "0001", row) == "STOP"
    assert decision(scheduler, "0002", {"epoch": 1, "objective": 0.1}) == "CONTINUE"


def test_a_lost_process_is_described_by_the_last_words_of_ray(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    trial = SimpleNamespace(error_file=str(file))
    assert death_cause(trial) == "its process was lost: no cause is known"
    file.write_text("Failure # 1\nold\nFailure # 2\nTraceback\n  raise X\nX: low on memory\n\n")
    assert death_cause(trial) == "its process was lost: X: low on memory"
