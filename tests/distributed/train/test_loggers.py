"""Figures in TensorBoard and MLflow: each epoch once, whatever is interrupted."""

import builtins
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distributed.train.loggers import Tracking, check_tracking, tracking
from vgse.config import DataConfig, RunConfig, TrackingConfig, validate


def row(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "loss": 1 / epoch, "used_clusters": 20, "worker_stalls": [0, 1]} | more


def config(mlflow: str | None = None) -> RunConfig:
    return RunConfig(tracking=TrackingConfig(tensorboard=mlflow is None, mlflow=mlflow))


def log(run: object, config: RunConfig, history: int, epochs: range, said: list[str]) -> None:
    """One call of a run: `history` epochs are in metrics.jsonl, others end now."""
    rows = [row(epoch) for epoch in range(1, history + 1)]
    with tracking(config, str(run), rows, said.append) as trackers:
        for epoch in epochs:
            trackers.add(row(epoch))


def curve(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


EIGHT = [(epoch, 1 / epoch) for epoch in range(1, 9)]


def test_tensorboard_has_each_epoch_once_after_a_run_that_was_killed(tmp_path: Path) -> None:
    said: list[str] = []
    log(tmp_path, config(), 0, range(1, 6), said)
    log(tmp_path, config(), 5, range(4, 9), said)  # from a checkpoint of epoch 3
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert curve(tmp_path / "tensorboard") == EIGHT
    assert said == []


def test_tensorboard_of_a_run_in_a_store_is_uploaded_epoch_by_epoch(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    run = f"memory://{uuid.uuid4().hex}/run"
    with tracking(config(), run, [], print) as trackers:
        trackers.add(row(1)).result(30)
        assert len(store.ls(f"{run}/tensorboard")) == 1
        trackers.add(row(2))
    store.get(f"{run}/tensorboard", str(tmp_path / "copy"), recursive=True)
    assert curve(tmp_path / "copy") == EIGHT[:2]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    return f"sqlite:///{tmp_path}/mlflow.db"


def runs_in(uri: str) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("vgse")
    return client, client.search_runs([experiment.experiment_id])


def test_mlflow_goes_on_in_the_same_run_with_each_epoch_once(uri: str, tmp_path: Path) -> None:
    said: list[str] = []
    run = tmp_path / "it's"  # the filter language of MLflow has no way to write a quote
    log(run, config(uri), 0, range(1, 6), said)
    log(run, config(uri), 6, range(4, 9), said)  # epoch 6 had no time to be sent
    log(tmp_path / "other", config(uri), 0, range(1, 2), said)
    client, runs = runs_in(uri)
    names = {found.info.run_name: found for found in runs}
    assert set(names) == {"it's", "other"} and len(runs) == 2
    found = names["it's"]
    assert found.info.status == "FINISHED"
    assert found.data.params["training.batch_size"] == "256"
    assert found.data.params["tracking.mlflow"] == uri
    steps = [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "loss")]
    assert sorted(steps) == EIGHT
    assert "epoch" not in found.data.metrics and "worker_stalls" not in found.data.metrics
    assert said == []


def test_mlflow_says_that_a_run_failed(uri: str, tmp_path: Path) -> None:
    with suppress(RuntimeError), tracking(config(uri), str(tmp_path), [], print) as trackers:
        trackers.add(row(1))
        raise RuntimeError
    assert [found.info.status for found in runs_in(uri)[1]] == ["FAILED"]


class Flaky:
    """A tracker that is away for a while."""

    name = "flaky"

    def __init__(self) -> None:
        self.away = True
        self.rows: list[dict[str, Any]] = []
        self.finished: bool | None = None

    def send(self, rows: list[dict[str, Any]]) -> None:
        if self.away:
            raise ConnectionError("no route\nto host")
        self.rows = rows

    def close(self, finished: bool) -> None:
        self.finished = finished


def test_a_tracker_that_is_away_is_said_once_and_gets_all_later() -> None:
    said: list[str] = []
    flaky = Flaky()
    trackers = Tracking([flaky], [row(1)], said.append)
    trackers.add(row(2))
    trackers.add(row(3)).result(10)
    flaky.away = False
    trackers.close(finished=True)
    assert [kept["epoch"] for kept in flaky.rows] == [1, 2, 3]
    assert flaky.finished
    (line,) = said
    assert line.startswith("flaky takes no metrics (ConnectionError: no route to host); ")


def test_a_tracker_that_stays_away_is_said_at_the_end() -> None:
    said: list[str] = []
    trackers = Tracking([Flaky()], [row(1)], said.append)
    trackers.close(finished=True)
    assert said[-1] == "flaky lacks metrics of this run; metrics.jsonl has all"


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("tracking.mlflow", {"tracking": TrackingConfig(mlflow="https://me:hunter2@host/x")}),
        ("tracking.mlflow", {"tracking": TrackingConfig(mlflow="postgresql://me:hunter2@h/d")}),
        ("data.shards", {"data": DataConfig(shards="simplecache::ftp://me:hunter2@h/shards")}),
        ("storage", {"storage": "s3://key:hunter2@bucket/runs"}),
        ("data.words", {"data": DataConfig(words="https://h/w.txt?X-Amz-Signature=hunter2")}),
        ("data.words", {"data": DataConfig(words="https://h/w.txt?sv=1&sig=hunter2")}),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(
    field: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=rf"^{field} holds a password") as refused:
        validate(RunConfig(**changes))
    assert "hunter2" not in str(refused.value)


def test_an_address_without_a_password_is_taken() -> None:
    address = "https://me@host:5000/a:b@c"
    validate(RunConfig(tracking=TrackingConfig(mlflow=address), storage="s3://bucket/a:b@c"))


def test_a_folder_is_refused_with_what_mlflow_takes_instead() -> None:
    with pytest.raises(ValueError, match=r"give sqlite:////data/mlflow.db or the URL"):
        check_tracking(TrackingConfig(mlflow="/data"))
    check_tracking(TrackingConfig())
    pytest.importorskip("mlflow")
    check_tracking(TrackingConfig(mlflow="sqlite:////data/mlflow.db"))
    check_tracking(TrackingConfig(mlflow="https://host/x"))


def test_a_missing_mlflow_is_named_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError, match=r"pip install 'vgse\[mlflow\]'"):
        check_tracking(TrackingConfig(mlflow="https://host/x"))


def test_mlflow_is_imported_only_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []
    true_import: Callable[..., Any] = builtins.__import__

    def note(name: str, *rest: Any, **more: Any) -> Any:
        seen.append(name)
        return true_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", note)
    log(tmp_path, config(), 0, range(1, 2), [])
    assert not any(name.startswith("mlflow") for name in seen)
