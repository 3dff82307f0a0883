"""Importances of hyper-parameters, on searches of known functions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search_folder import DEFAULT, EPOCHS, drawn, make_search, one_trial, write_trials
from tune.report.axes import axes_of
from tune.report.importance import Importance, carried_objectives, importance
from tune.report.search_files import load_search


def found_in(folder: Path, **options: Any) -> Importance:
    search = load_search(folder)
    found = importance(search.trials, axes_of(search), **options)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_search(tmp_path_factory.mktemp("importance") / "search")


@pytest.fixture(scope="module")
def found(whole: Path) -> Importance:
    return found_in(whole)


def test_importance_orders_what_matters_before_what_does_not(found: Importance) -> None:
    assert next(iter(found.shares)) == "model.temperature"
    assert found.shares["model.temperature"] > 0.6
    idle = [share for name, share in found.shares.items() if name != "model.temperature"]
    assert max(idle) < 0.1
    assert found.floor < found.shares["model.temperature"] / 2


def test_shuffled_objectives_leave_nothing_above_the_floor_by_much(
    whole: Path, found: Importance
) -> None:
    search = load_search(whole)
    order = np.random.default_rng(1).permutation(len(search.trials))
    histories = [search.trials[n].history for n in order]
    shuffled = [
        replace(trial, history=history)
        for trial, history in zip(search.trials, histories, strict=True)
    ]
    of_shuffled = importance(shuffled, axes_of(search))
    assert of_shuffled is not None
    assert of_shuffled.shares["model.temperature"] < 0.3 < found.shares["model.temperature"]
    # By an ordinary share it may be above.
    assert max(of_shuffled.shares.values()) < 2 * of_shuffled.floor


def test_a_search_that_drifts_raises_the_floor_above_its_idle_parameters(tmp_path: Path) -> None:
    """λ_ent moves with τ as the search learns, so that it seems to matter."""
    folder = make_search(tmp_path / "drifting", trials=0)
    generator = np.random.default_rng(3)
    trials = []
    for number in range(60):
        late = number / 59
        params = drawn(generator)
        params["loss.entropy"] = 10 ** (-2 + 3 * late * generator.uniform(0.8, 1))
        params["model.temperature"] = 10 ** (-2 + 2 * late * generator.uniform(0.8, 1))
        score = 0.2 + 0.2 * late + 0.01 * generator.normal()
        trials.append(one_trial(params, np.linspace(0.1, score, EPOCHS).tolist()))
    write_trials(folder, trials)
    found = found_in(folder)
    assert found.shares["loss.entropy"] > 0.1  # a control: it does seem to matter
    assert found.floor > 0.1
    still = found_in(make_search(tmp_path / "still", reaches=lambda score: EPOCHS))
    assert still.floor < 0.1


def test_importance_weighs_the_decades_of_a_log_scale_alike(tmp_path: Path) -> None:
    def high_only_below_a_hundredth(params: dict[str, Any]) -> float:
        return 0.4 if params["loss.entropy"] < 0.1 else 0.2

    folder = make_search(
        tmp_path / "s", value=high_only_below_a_hundredth, reaches=lambda s: EPOCHS
    )
    # On a plain scale 0.01..0.1 is a hundredth of the space and could explain nearly nothing.
    assert found_in(folder).shares["loss.entropy"] > 0.8


def test_importance_is_the_same_when_asked_again(whole: Path, found: Importance) -> None:
    assert found_in(whole) == found


def test_ten_trials_are_enough(tmp_path: Path) -> None:
    assert found_in(make_search(tmp_path / "ten", trials=10)).num_trials == 10


def test_trials_that_are_all_alike_have_no_importances(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "alike", trials=1)
    write_trials(folder, [one_trial(DEFAULT, [0.1 + n / 100]) for n in range(1, 20)])
    search = load_search(folder)
    assert importance(search.trials, axes_of(search)) is None


def test_a_stopped_trial_counts_as_if_it_had_gone_on_at_the_pace_of_the_others(
    tmp_path: Path,
) -> None:
    folder = make_search(tmp_path / "s", trials=0)
    stopped = [one_trial(DEFAULT, curve, "stopped") for curve in ([0.1], [0.1, 0.2])]
    write_trials(folder, [one_trial(DEFAULT, [0.1, 0.2, 0.3]), *stopped, one_trial(state="failed")])
    carried = carried_objectives(load_search(folder).trials)
    assert carried == pytest.approx({"0000": 0.3, "0001": 0.3, "0002": 0.3})


def test_early_stopping_does_not_hide_what_matters(tmp_path: Path) -> None:
    def by_luck(score: float) -> int:
        return EPOCHS if generator.random() < 0.3 else 1

    generator = np.random.default_rng(5)
    found = found_in(make_search(tmp_path / "s", reaches=by_luck))
    assert found.shares["model.temperature"] > 0.6


def test_a_search_of_words_and_switches_has_axes_of_choices(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "s", trials=0)
    trials = []
    for number in range(1, 20):
        params = {"model.kind": ["plain", "deep"][number % 2], "model.flag": number % 3 == 0}
        trials.append(one_trial(params, [0.1 + 0.2 * (number % 2) + number / 1000]))
    write_trials(folder, trials)
    axes = axes_of(load_search(folder))
    assert [axis.choices for axis in axes] == [("deep", "plain"), (False, True)]
    assert next(iter(found_in(folder).shares)) == "model.kind"
