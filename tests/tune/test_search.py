"""A search under Ray: blind to test shards, through failures, resumed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from distributed.__main__ import make_parser as make_train_parser
from tune.search import search
from tune.study import JOURNAL, read_trials
from tune_tiny import EPOCHS, broken_search


def final_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "final.json").read_text())
    return content


def test_trials_never_open_a_test_shard(blind: Path) -> None:
    records = read_trials(blind)
    assert sum(record.state in ("finished", "stopped") for record in records) >= 2
    features = next((blind.parents[1] / "packed" / "features").iterdir())
    assert list(features.glob("train*")) and not list(features.glob("test*"))
    assert final_of(blind)["test_opened"] == []
    assert all(row["validation_only"] for row in final_of(blind)["rows"])


def test_a_trial_that_cannot_be_trained_is_recorded_and_the_search_goes_on(blind: Path) -> None:
    records = read_trials(blind)
    assert [record.name for record in records] == ["0000", "0001", "0002", "0003", "0004"]
    assert all(record.ended for record in records)
    failed = [record for record in records if record.params["training.learning_rate"] > 1]
    assert failed, "the seed of the search draws none: choose another"
    for record in failed:
        assert record.state == "failed" and "lower training.learning_rate" in str(record.cause)
    others = [record for record in records if record not in failed]
    assert all(record.state in ("finished", "stopped") for record in others)
    assert any(record.name > failed[0].name for record in others)


def test_the_default_comes_first_and_is_not_stopped(blind: Path) -> None:
    first = read_trials(blind)[0]
    assert first.params == {
        "loss.entropy": 0.5,
        "model.num_clusters": 16,
        "training.learning_rate": 1e-2,
    }
    assert first.state == "finished" and first.epoch == EPOCHS


def test_the_files_of_a_search_follow_the_contract(blind: Path) -> None:
    trial = read_trials(blind)[0]
    assert {"epoch", "objective", "loss", "used_clusters", "nmi", "seconds"} <= set(
        trial.history[-1]
    )
    assert trial.source == "cache" and trial.epochs == EPOCHS
    timing = json.loads((blind / "search.json").read_text())
    assert timing["trials_per_minute"] > 0 and timing["concurrent"] >= 1
    assert not list((blind / "checkpoints").iterdir())  # nobody goes on from them
    assert not (blind / "ray").exists()


def test_one_kmeans_a_number_of_clusters_serves_all_trials(blind: Path) -> None:
    features = next((blind.parents[1] / "packed" / "features").iterdir())
    starts = sorted(path.name.partition("-")[0] for path in (features / "starts").iterdir())
    assert starts == ["12", "16"]


def test_the_best_configuration_trains(blind: Path) -> None:
    best = yaml.safe_load((blind / "best.yaml").read_text())
    options = make_train_parser().parse_args(["train", "--config", str(blind / "best.yaml")])
    assert options.train.model.num_clusters == best["model"]["num_clusters"]
    assert best["training"]["classes"] == "seen" and best["training"]["learning_rate"] == 1e-2


def test_a_finished_search_resumed_repeats_no_trial(blind: Path) -> None:
    before = (blind / JOURNAL).read_bytes()
    search(broken_search(blind.parents[1], trials=5), "blind", resume=True)
    assert (blind / JOURNAL).read_bytes() == before


def test_an_interrupted_trial_goes_on_and_more_trials_follow(blind: Path) -> None:
    """What a driver leaves that is killed before it tells of the end of the default."""
    home = blind.parents[1]
    folder = home / "searches" / "again"
    shutil.copytree(blind, folder)
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    end = next(n for n, line in enumerate(lines) if ends_trial(json.loads(line), 0))
    (folder / JOURNAL).write_bytes(b"".join(lines[:end] + lines[end + 1 :]))
    before = {record.name: record for record in read_trials(folder)}
    assert not before["0000"].ended
    # One at a time: starting processes takes the most of this.
    search(replace(broken_search(home, trials=6), max_concurrent=1), "again", resume=True)
    after = read_trials(folder)
    assert [record.name for record in after] == [f"000{number}" for number in range(6)]
    assert all(before[r.name] == r for r in after if r.name in before and r.name != "0000")
    assert after[0].state == "finished" and after[0].epoch == EPOCHS
    assert after[0].history[:2] == before["0000"].history[:2]


def ends_trial(entry: dict[str, Any], trial_id: int) -> bool:
    """Whether a line of the journal tells how a trial ended."""
    return (entry["op_code"], entry.get("trial_id")) == (6, trial_id) and entry["state"] in (
        1,
        2,
        3,
    )
