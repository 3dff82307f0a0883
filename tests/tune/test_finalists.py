"""Finalists on test images, and what is said of them; trials of several workers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ray.util.placement_group import placement_group_table

import tune.finalists
from tune.search import search
from tune.study import read_trials
from tune_tiny import broken_search, make_search
from vgse.config import RunConfig

Trained = dict[str, RunConfig]


def final_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "final.json").read_text())
    return content


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The finalists' runs that were trained."""
    return {}


@pytest.fixture(scope="module")
def tested(
    blind: Path, root: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The search with readable test images and a finalist, which gets the default's results:
    training that one as well would show nothing more."""
    old, home = blind.parents[1], tmp_path_factory.mktemp("final")
    shutil.copytree(old, home, dirs_exist_ok=True)
    for shard in (root / "packed").glob("test_*.tar"):
        shutil.copy(shard, home / "packed")
    file = home / "searches" / "blind" / "search.yaml"
    file.write_text(file.read_text().replace(str(old), str(home)))
    train = tune.finalists.train

    def train_default(config: RunConfig, name: str) -> None:
        assert name not in trained
        trained[name] = config
        folder = Path(config.storage)
        if name == "default":
            train(config, name)
        else:
            shutil.copytree(folder / "default", folder / name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune.finalists, "train", train_default)
        return search(broken_search(home, trials=5, finalists=1), "blind", resume=True)


def test_finalists_and_the_default_open_the_test_images_once_each(
    tested: Path, trained: Trained
) -> None:
    final, records = final_of(tested), {record.name: record for record in read_trials(tested)}
    best = max(
        (record for record in records.values() if record.state == "finished"),
        key=lambda record: (record.name != "0000", record.objective),
    )
    assert [row["name"] for row in final["rows"]] == ["default", best.name]
    assert list(trained) == ["default", best.name]
    assert trained[best.name].model.num_clusters == best.params["model.num_clusters"]
    assert trained[best.name].loss.entropy == best.params["loss.entropy"]
    for row in final["rows"]:
        assert trained[row["name"]].training.classes == "seen"
        assert 0 <= row["test"]["zsl"] <= 1 and 0 <= row["validation"] <= 1
        assert (tested / row["run"] / "report.html").is_file()
        evaluation = json.loads((tested / row["run"] / "evaluation.json").read_text())
        smo = next(entry for entry in evaluation["rows"] if entry["name"] == "smo")
        assert row["test"]["zsl"] == smo["results"]["prototype"]["zsl"]
        opened = [entry for entry in final["test_opened"] if entry["row"] == row["name"]]
        assert sorted(entry["split"] for entry in opened) == ["test_seen", "test_unseen"]


def test_a_resumed_search_does_not_open_test_images_again(tested: Path) -> None:
    stamp = {p: p.stat().st_mtime_ns for p in tested.rglob("evaluation.json")}
    before = final_of(tested)
    assert len(stamp) == 2
    search(broken_search(tested.parents[1], trials=5, finalists=1), "blind", resume=True)
    assert {p: p.stat().st_mtime_ns for p in tested.rglob("evaluation.json")} == stamp
    assert final_of(tested) == before


def test_a_trial_of_two_workers_is_a_run_of_ray_train(root: Path, blind: Path) -> None:
    """Four CPUs hold two such trials, and their drivers take none of them."""
    folder = search(make_search(root, trials=1, workers_per_trial=2), "nested")
    record = read_trials(folder)[0]
    assert record.state == "finished"
    assert json.loads((folder / "search.json").read_text())["concurrent"] == 2
    alone = read_trials(blind)[0]  # other batches, the same task
    assert record.params == alone.params
    assert record.history[-1]["loss"] == pytest.approx(alone.history[-1]["loss"], abs=0.1)
    assert record.history[0]["loss"] > record.history[-1]["loss"]
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}
