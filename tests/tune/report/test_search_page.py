"""What `python -m tune analyse` says of a search, on folders of known functions."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser_page import Tags
from search_folder import EPOCHS, drawn, final_row, make_search, write, write_trial
from tune.report.analyse import analyse
from tune.report.axes import Axis, axes_of, plain
from tune.report.importance import Importance, carried_objectives, importance
from tune.report.page import write_page
from tune.report.parallel import NUM_SHADES, shades
from tune.report.search_files import load_search
from tune.report.verdict import headline, judge_ranks, spearman
from tune.study import read_trials

EVIL = '<script>alert("x")</script>'
FINALS = [
    final_row("default", 0.30, 0.25),
    final_row("0007", 0.39, 0.28),
    final_row("0011", 0.38, 0.27),
]


def found_in(folder: Path, **options: Any) -> Importance:
    search = load_search(folder)
    found = importance(search.trials, axes_of(search), **options)
    assert found is not None
    return found


def shown(folder: Path) -> str:
    """The text of the page, without its tags, scripts and styles."""
    return Tags(write_page(folder).read_text(encoding="utf-8")).text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_search(tmp_path_factory.mktemp("searches") / "demo-search", finals=FINALS)
    write_trial(
        folder,
        60,
        state="failed",
        cause="CUDA out of memory",
        params=drawn(np.random.default_rng(9)),
    )
    write_trial(
        folder,
        61,
        state="collapsed",
        cause="5 of 100 clusters are in use",
        history=[{"epoch": 1, "objective": 0.05}],
    )
    return folder


@pytest.fixture(scope="module")
def page(whole: Path) -> str:
    return write_page(whole).read_text(encoding="utf-8")


def test_importance_orders_what_matters_before_what_does_not(whole: Path) -> None:
    found = found_in(whole)
    assert next(iter(found.shares)) == "model.temperature"
    assert found.shares["model.temperature"] > 0.6
    idle = [share for name, share in found.shares.items() if name != "model.temperature"]
    assert max(idle) < 0.1
    assert found.floor < found.shares["model.temperature"] / 2


def test_shuffled_objectives_leave_nothing_above_the_floor_by_much(whole: Path) -> None:
    search = load_search(whole)
    curves = [trial.curve for trial in search.trials if trial.curve]
    order = np.random.default_rng(1).permutation(len(curves))
    others = iter([curves[n] for n in order])
    shuffled = []
    for trial in search.trials:
        if trial.curve:
            curve = next(others)
            changes = {"curve": curve, "objective": curve[-1][1]}
            trial = type(trial)(**{**vars(trial), **changes})
        shuffled.append(trial)
    found = importance(shuffled, axes_of(search))
    assert found is not None
    assert found.shares["model.temperature"] < 0.3 < found_in(whole).shares["model.temperature"]
    assert max(found.shares.values()) < 2 * found.floor  # by an ordinary share it may be above


def test_a_search_that_drifts_raises_the_floor_above_its_idle_parameters(tmp_path: Path) -> None:
    """λ_ent moves with τ as the search learns, so that it seems to matter."""
    like = read_trials(make_search(tmp_path / "like", reaches=lambda score: EPOCHS))
    folder = make_search(tmp_path / "drifting", trials=0)
    generator = np.random.default_rng(3)
    for number, trial in enumerate(like):
        late = number / 59
        score = 0.2 + 0.2 * late + 0.01 * generator.normal()
        trial.params["loss.entropy"] = 10 ** (-2 + 3 * late * generator.uniform(0.8, 1))
        trial.params["model.temperature"] = 10 ** (-2 + 2 * late * generator.uniform(0.8, 1))
        trial.history[-1]["objective"] = score
        write_trial(folder, number, params=trial.params, history=trial.history)
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


def test_importance_is_the_same_when_asked_again(whole: Path) -> None:
    assert found_in(whole) == found_in(whole)


@pytest.mark.parametrize("trials", [1, 9])
def test_too_few_trials_are_said_to_be_too_few(
    tmp_path: Path, trials: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_search(tmp_path / "short", trials=trials)
    analyse(folder)
    assert "importance: too few trials" in capsys.readouterr().out
    assert "Too few trials: importances need at least 10" in shown(folder)


def test_ten_trials_are_enough(tmp_path: Path) -> None:
    assert found_in(make_search(tmp_path / "ten", trials=10)).num_trials == 10


def test_trials_that_are_all_alike_have_no_importances(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "alike", trials=1)
    for number in range(1, 20):
        history = [{"epoch": 1, "objective": 0.1 + number / 100}]
        write_trial(folder, number, history=history)
    search = load_search(folder)
    assert importance(search.trials, axes_of(search)) is None


def test_a_stopped_trial_counts_as_if_it_had_gone_on_at_the_pace_of_the_others(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "s"
    grows = [
        {"epoch": 1, "objective": 0.1},
        {"epoch": 2, "objective": 0.2},
        {"epoch": 4, "objective": 0.3},
    ]
    write_trial(folder, 0, history=grows)
    write_trial(folder, 1, history=grows[:1], state="stopped")
    write_trial(folder, 2, history=grows[:2], state="stopped")
    write_trial(folder, 3, state="failed")
    carried = carried_objectives(load_search(folder).trials)
    assert carried == pytest.approx({"0000": 0.3, "0001": 0.3, "0002": 0.3})


def test_early_stopping_does_not_hide_what_matters(tmp_path: Path) -> None:
    def by_luck(score: float) -> int:
        return EPOCHS if generator.random() < 0.3 else 1

    generator = np.random.default_rng(5)
    found = found_in(make_search(tmp_path / "s", reaches=by_luck))
    assert found.shares["model.temperature"] > 0.6


def test_the_headline_tells_validation_test_and_the_gain(whole: Path) -> None:
    first, second = headline(load_search(whole))
    assert re.match(
        r"62 trials\. Best on the validation classes: trial \d{4} with 3\d\.\d% zero", first
    )
    assert second == (
        "Retrained, 0007 reaches 28.0% on the test classes, the default configuration 25.0%: "
        "the search gained 3.0 points."
    )


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([final_row("default", 0.3, 0.28), final_row("0007", 0.4, 0.25)], "lost 3.0 points"),
        ([final_row("default", 0.3, 0.28), final_row("0007", 0.4, 0.28)], "gained nothing on test"),
        ([final_row("default", 0.4, 0.2), final_row("0007", 0.3, 0.28)], "keep the default"),
        ([final_row("0007", 0.3, 0.28)], "the default configuration was not measured"),
        (
            [final_row("default", 0.3, 0.2), final_row("0007", 0.4, None, cause="disk full")],
            "disk full",
        ),
        ([final_row("default", 0.3, None), final_row("0007", 0.4, None)], "have not been opened"),
        ([], "have not been opened"),
    ],
)
def test_the_headline_is_honest(tmp_path: Path, rows: list[Any], sentence: str) -> None:
    folder = make_search(tmp_path / "s", trials=3, finals=rows)
    assert sentence in headline(load_search(folder))[1]
    assert sentence in shown(folder)


def test_the_winner_is_chosen_by_validation_and_not_by_test(tmp_path: Path) -> None:
    rows = [
        final_row("default", 0.2, 0.2),
        final_row("0001", 0.3, 0.9),
        final_row("0002", 0.4, 0.1),
    ]
    folder = make_search(tmp_path / "s", trials=3, finals=rows)
    assert "0002 reaches 10.0%" in headline(load_search(folder))[1]


def test_spearman_counts_how_often_chance_gives_as_much() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx((1, 1 / 6))
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx((-1, 1))
    rho, chance = spearman(list(range(20)), list(range(20)))
    assert rho == pytest.approx(1) and chance < 0.001
    assert all(math.isnan(value) for value in spearman([1, 1, 1], [1, 2, 3]))


def test_a_high_correlation_of_three_is_no_proof(whole: Path) -> None:
    said = judge_ranks(load_search(whole))
    assert said.startswith("Rank correlation (Spearman) of validation and test: 1.00.")
    assert "16.7% of cases, so this does not show" in said


def test_the_terminal_shows_best_trials_states_causes_importance_and_verdict(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = analyse(whole)
    out = capsys.readouterr().out
    assert path == whole / "search.html" and path.is_file()
    assert f"trial {load_search(whole).best.name}" in out  # type: ignore[union-attr]
    assert "1 collapsed, 1 failed" in out
    assert "failed 1x: CUDA out of memory (0060)" in out
    assert re.search(r"importance: τ \d\d%, .*below \d+% it may be chance", out)
    assert "the search gained 3.0 points" in out


def test_a_cause_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_search(tmp_path / "s", trials=2)
    write_trial(folder, 2, state="failed", cause="\x1b[2J\x07[bold]gone[/nothing]")
    analyse(folder)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
    assert "[bold]gone[/nothing]" in out


def test_the_page_has_all_sections(page: str) -> None:
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Validation against test", "What good trials have in common",
        "Which hyper-parameters matter", "One hyper-parameter at a time", "Learning curves",
        "All trials", "What went wrong", "Best configuration",
    ]  # fmt: skip
    assert 'class="notice"' not in page


def test_no_two_elements_share_an_id(page: str) -> None:
    found = re.findall(r' id="([^"]+)"', page)
    assert len(found) == len(set(found)) > 10


def test_every_trial_is_in_every_chart_and_in_the_table(page: str) -> None:
    assert len(re.findall(r'<path class="t s\d[^"]*" data-t=', page)) == 61  # one failed at once
    assert len(re.findall(r'<tr class="t[^"]*" data-t=', page)) == 62
    assert page.count('class="line slice"') == 4
    assert len(re.findall(r'<circle class="t [^"]*" data-t="0"', page)) == 4


def test_the_page_shows_causes_facts_and_the_best_configuration(page: str) -> None:
    text = Tags(page).text
    assert "CUDA out of memory 0060" in text and "5 of 100 clusters are in use 0061" in text
    assert "12.5 2 at the same time" in text and "5 min" in text
    assert "entropy: 0.5" in text and "data-copy" in page
    assert re.search(r"1 collapsed, 1 failed", text)


def test_the_page_asks_nothing_of_a_network(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]+\.", page)
    assert "default-src 'none'" in page


def test_the_same_search_gives_the_same_page(whole: Path, page: str) -> None:
    assert write_page(whole).read_text(encoding="utf-8") == page


def test_texts_of_strangers_stay_text(tmp_path: Path) -> None:
    rows = [final_row("default", 0.2, 0.2), final_row(EVIL, 0.3, 0.3, model=EVIL, cause=EVIL)]
    folder = make_search(tmp_path / f"s{EVIL.replace('/', '')}", trials=12, finals=rows)
    for number in range(12, 16):
        params = {**drawn(np.random.default_rng(number)), EVIL: EVIL, "_x": '"><img src=x>'}
        state, cause = "failed" if number < 14 else "finished", f"{EVIL} \ud800 {number}"
        history = [{"epoch": 1, "objective": 0.2}]
        write_trial(folder, number, state=state, cause=cause, params=params, history=history)
    (folder / "best.yaml").write_text(f"# {EVIL}")
    content = json.loads((folder / "final.json").read_text())
    content["rows"][1]["test"][EVIL] = 0.1
    write(folder / "final.json", {**content, "objective": "zsl"})
    page = write_page(folder).read_text(encoding="utf-8")
    tags = Tags(page)
    scripts = [attributes.get("type") for tag, attributes in tags.tags if tag == "script"]
    assert sorted(map(str, scripts)) == ["None", "application/json"]
    assert not [tag for tag, _ in tags.tags if tag == "img"]
    assert tags.text.count(EVIL) >= 8  # a control: the texts did reach the page
    assert EVIL not in page


def test_odd_figures_in_a_trial_do_no_harm(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "s", trials=12)
    write_trial(folder, 12, state="failed", history=[{"epoch": 1, "objective": math.inf}])
    odd = load_search(folder).trials[-1]
    assert (odd.name, odd.objective, odd.curve) == ("0012", None, [])
    assert "13 trials" in shown(folder)


@pytest.mark.parametrize("file", ["search.yaml", "final.json", "search.json"])
def test_a_cut_off_file_of_the_search_is_named(tmp_path: Path, file: str) -> None:
    folder = make_search(tmp_path / "s", trials=3, finals=FINALS)
    (folder / file).write_text('{"version": 1, "ro')
    with pytest.raises(ValueError, match=rf"{file}: cannot be read") as error:
        analyse(folder)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no search; give a folder that `python -m tune"):
        analyse(tmp_path)


def test_a_search_that_has_just_begun_gives_a_page(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "s", trials=0)
    assert "0 trials, and none has finished an epoch yet." in shown(folder)
    write_trial(folder, 0, state="running")
    assert "1 trial, and none has finished an epoch yet." in shown(folder)
    write_trial(folder, 1, state="running", history=[{"epoch": 1, "objective": 0.2}])
    assert "Learning curves" in shown(folder)


def test_a_search_of_words_and_switches_has_axes_of_choices(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "s", trials=0)
    for number in range(20):
        params = {"model.kind": ["plain", "deep"][number % 2], "model.flag": number % 3 == 0}
        history = [{"epoch": 1, "objective": 0.1 + 0.2 * (number % 2) + number / 1000}]
        write_trial(folder, number, params=params, history=history)
    search = load_search(folder)
    axes = axes_of(search)
    assert [axis.choices for axis in axes] == [("deep", "plain"), (False, True)]
    assert next(iter(found_in(folder).shares)) == "model.kind"
    assert "plain" in shown(folder)


def test_places_on_an_axis() -> None:
    log = Axis("x", 0.01, 1.0, True)
    assert [log.place(v) for v in (0.01, 0.1, 1, 5, 0, "a")] == pytest.approx(
        [0, 0.5, 1, 1, None, None]
    )
    choices = Axis("x", 0, 1, False, (50, 100))
    assert [choices.place(v) for v in (50, 100.0, 75)] == [0.25, 0.75, None]
    assert Axis("x", 2, 2, False).place(2) == 0.5


def test_values_read_as_figures() -> None:
    assert [plain(v) for v in (0.070123, 150, 3e-05, 12345.6, -0.05, "plain", True)] == [
        "0.0701", "150", "3e\N{MINUS SIGN}5", "12346", "\N{MINUS SIGN}0.05", "plain", "True",
    ]  # fmt: skip


def test_shades_spread_by_rank(whole: Path) -> None:
    found = shades(load_search(whole).trials)
    assert set(found) == {-1, *range(NUM_SHADES)}
    assert max(found.count(shade) for shade in range(NUM_SHADES)) <= 9


def test_the_command_line_can_be_loaded_without_the_heavy_libraries() -> None:
    code = (
        "import sys, tune.report.analyse; "
        "assert not {'torch', 'ray', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
