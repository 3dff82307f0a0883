"""Finalists on test images, and what is said of them; trials of several workers."""

import json
from pathlib import Path
from typing import Any

import pytest

from tune.finalists import rank_correlation
from tune.search import search
from tune.study import read_trials
from tune_tiny import make_search, make_tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("final")
    make_tiny(root, train=12, test=4)
    return root


def final_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "final.json").read_text())
    return content


@pytest.fixture(scope="module")
def tested(ray_session: None, root: Path) -> Path:
    """A small search with a finalist, scored on test images."""
    return search(make_search(root, trials=2, finalists=1), "tested")


def test_finalists_and_the_default_open_the_test_images_once_each(tested: Path) -> None:
    final = final_of(tested)
    assert [row["name"] for row in final["rows"]] == ["default", "0001"]
    for row in final["rows"]:
        assert 0 <= row["test"]["zsl"] <= 1 and 0 <= row["validation"] <= 1
        assert (tested / row["run"] / "report.html").is_file()
        evaluation = json.loads((tested / row["run"] / "evaluation.json").read_text())
        smo = next(entry for entry in evaluation["rows"] if entry["name"] == "smo")
        assert row["test"]["zsl"] == smo["results"]["prototype"]["zsl"]
        opened = [entry for entry in final["test_opened"] if entry["row"] == row["name"]]
        assert sorted(entry["split"] for entry in opened) == ["test_seen", "test_unseen"]
    assert final["rank_correlation"] is None  # of two configurations


def test_a_resumed_search_does_not_open_test_images_again(tested: Path, root: Path) -> None:
    stamp = {p: p.stat().st_mtime_ns for p in tested.rglob("evaluation.json")}
    before = final_of(tested)
    assert len(stamp) == 2
    search(make_search(root, trials=2, finalists=1), "tested", resume=True)
    assert {p: p.stat().st_mtime_ns for p in tested.rglob("evaluation.json")} == stamp
    assert final_of(tested) == before


def test_a_trial_of_two_workers_is_a_run_of_ray_train(
    ray_session: None, root: Path, tested: Path
) -> None:
    """Four CPUs hold two such trials, and their drivers take none of them."""
    folder = search(make_search(root, trials=1, workers_per_trial=2), "nested")
    record = read_trials(folder)[0]
    assert record.state == "finished"
    assert json.loads((folder / "search.json").read_text())["concurrent"] == 2
    alone = read_trials(tested)[0]  # other batches, the same task
    assert record.params == alone.params
    assert record.history[-1]["loss"] == pytest.approx(alone.history[-1]["loss"], abs=0.1)
    assert record.history[0]["loss"] > record.history[-1]["loss"]


def row(name: str, validation: float, test: float | None) -> dict[str, Any]:
    scores = None if test is None else {"zsl": test}
    return {"name": name, "validation": validation, "test": scores}


def test_the_rank_correlation_is_spearmans_over_what_was_tested() -> None:
    rows = [row("a", 0.1, 0.2), row("b", 0.2, 0.1), row("c", 0.3, 0.9), row("d", 0.9, None)]
    assert rank_correlation(rows, "zsl") == pytest.approx(0.5)
    assert rank_correlation(rows[:2], "zsl") is None
    assert rank_correlation([row("x", 0.1, 0.2)] * 3, "zsl") is None
