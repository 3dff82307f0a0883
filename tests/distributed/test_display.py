"""What a terminal shows of a run, and what a pipe gets."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
import yaml
from ray.exceptions import ActorDiedError
from rich.console import Console

from distributed.display import Display
from distributed.train.callbacks import ReportCallback, cause_of
from distributed.train.metrics import Diverged, EpochSums, read_metrics
from distributed.train.progress import TrainingProgress, start_progress
from processes import descendants
from tiny import make_tiny

ROOT = Path(__file__).resolve().parents[2]
ROW = {
    "epoch": 3,
    "loss": 1.234,
    "classification": 2.5,
    "semantic": 0.75,
    "entropy": -4.5,
    "images_per_second": 1500.0,
    "used_clusters": 140,
}


def display_on(*, terminal: bool) -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    return Display(Console(file=file, force_terminal=terminal, width=90, highlight=False)), file


def training(max_failures: int = 3, workers: int = 2) -> TrainingProgress:
    state = TrainingProgress(10, 1000, 150, max_failures)
    state.group_started(workers, 1)
    return state


def test_a_pipe_gets_a_line_a_stage_without_escape_codes() -> None:
    display, file = display_on(terminal=False)
    with display, display.stage("features", 100) as stage:
        stage.update(50, "images")
        stage.summary = "100 images"
    assert file.getvalue() == "features    100 images (0 s)\n"


def test_a_pipe_gets_a_line_now_and_then_and_less_often_where_nothing_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distributed.display._PLAIN_INTERVAL_S", 0.1)
    display, file = display_on(terminal=False)
    with display, display.stage("features", 100) as stage:
        for done in (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 50):
            time.sleep(0.12)
            stage.update(done, "images")
    lines = file.getvalue().splitlines()[:-1]
    assert 3 <= len(lines) <= 6  # after 0.1, 0.3, 0.7 and 1.5 seconds, not ten times
    assert lines[0] == "features    0% images"


def test_a_terminal_shows_details_below_the_bar_until_the_stage_ends() -> None:
    display, file = display_on(terminal=True)
    state = training()
    state.epoch_ended(ROW)
    with display, display.stage("training", 10) as stage:
        stage.update(state.done, details=state.details())
        time.sleep(0.6)  # the display draws four times a second
        stage.summary = "done"
    shown = file.getvalue()
    for words in ("4 of 10", "1.234", "cls 2.50  sem 0.75  ent -4.50", "1,500 images/s"):
        assert words in shown
    assert "140 of 150 in use" in shown and "2 of 2" in shown
    assert "done" in shown.rsplit("140 of 150", 1)[-1]


def test_what_a_cause_holds_is_shown_as_it_is() -> None:
    display, file = display_on(terminal=False)
    with display, display.stage("training") as stage:
        stage.say("a worker was lost ([/closed] [bold]OSError)")
        display.line("runs/x[bold]y :dog: [/]")
        stage.summary = "[Errno 5]"
    assert "lost ([/closed] [bold]OSError)\n" in file.getvalue()
    assert "runs/x[bold]y :dog: [/]\n" in file.getvalue()
    assert "[Errno 5]" in file.getvalue()


def test_notes_and_details_below_the_bar_are_shown_as_they_are() -> None:
    display, file = display_on(terminal=True)
    with display, display.stage("features", 2) as stage:
        stage.update(1, "of [/a] :dog:", [("[b]", "[/c] :cat:")])
        time.sleep(0.4)
    assert all(text in file.getvalue() for text in ("of [/a] :dog:", "[b]", "[/c] :cat:"))


def test_a_lost_worker_is_said_with_its_cause_the_restarts_and_the_epoch() -> None:
    state = training()
    state.epoch_ended(ROW)
    state.share_done(3, 0.5)
    assert state.update().news == [ROW]
    assert state.done == 3.5
    state.workers_lost(1, 4, "its node died", restart=1)
    (line,) = state.update(seen=1).news
    assert line == "a worker was lost (its node died); 1 of 3 restarts, going on from epoch 4"
    assert state.done == 3
    assert dict(state.details())["workers"] == "starting, 1 of 3 restarts"
    state.group_started(2, 4)
    assert dict(state.details())["workers"] == "2 of 2, 1 of 3 restarts"
    assert len(state.update().news) == 2


def test_the_last_restart_and_several_workers_are_said_so() -> None:
    state = training()
    state.workers_lost(2, 4, "its node died", restart=4)
    assert state.update().news == ["2 workers were lost (its node died); no restart is left of 3"]
    endless = training(max_failures=-1)
    endless.workers_lost(1, 4, "its node died", restart=4)
    assert "; restart 4, going on" in str(endless.update().news)


def test_a_group_of_another_size_is_said() -> None:
    state = training()
    state.group_started(2, 2)
    assert state.update().news == []
    state.group_started(1, 4)
    assert state.update().news == ["now on 1 worker instead of 2, epoch 4"]


def test_the_speed_is_that_of_the_last_seconds() -> None:
    state = training()
    state.epoch_ended(ROW)
    assert state.rate() == 1500
    state.share_done(3, 0.1, now=10.0)
    state.share_done(3, 0.4, now=12.0)
    assert state.rate() == pytest.approx(150)  # 30% of 1000 images in two seconds


def report(epoch: int, entered: float, stall: float, **more: object) -> dict[str, object]:
    return {"epoch": epoch, "loss": 1.0, "entered": entered, "worker_stall": stall, **more}


def test_restarts_are_counted_with_the_seconds_that_they_cost(
    ray_session: None, tmp_path: Path
) -> None:
    progress = start_progress(10, 1000, 150, 3)
    callback = ReportCallback(str(tmp_path), progress)
    began = time.time()
    progress.group_started.remote(2, 1)
    callback.after_report(None, [report(1, began, 0.1), report(1, began, 0.3)], checkpoint="there")
    callback.after_report(None, [report(2, began, 0.1), report(2, began, 0.3)], checkpoint=None)
    callback.after_exception(None, {1: RuntimeError("Connection closed by peer")})
    again = time.time() + 30
    callback.after_report(None, [report(2, again, 0.1), report(2, again, 0.3)], checkpoint=None)
    rows = read_metrics(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["restarts"] == rows[0]["restart_seconds"] == 0
    assert rows[1]["restarts"] == 1
    assert rows[1]["restart_seconds"] == pytest.approx(30, abs=5)
    assert rows[1]["worker_stalls"] == [0.1, 0.3]
    assert "entered" not in rows[1]
    before, line, after = ray.get(progress.update.remote(1)).news
    assert before["epoch"] == after["epoch"] == 2
    assert line.startswith("a worker was lost (RuntimeError: Connection closed by peer); 1 of 3")
    assert line.endswith("going on from epoch 2")
    later = ReportCallback(str(tmp_path), progress)  # of another call of the same run
    assert (later.restarts, later.losses) == (1, 0)


def test_a_checkpoint_within_an_epoch_is_where_a_restart_goes_on(
    ray_session: None, tmp_path: Path
) -> None:
    progress = start_progress(10, 1000, 150, 3)
    callback = ReportCallback(str(tmp_path), progress)
    progress.group_started.remote(2, 5)
    callback.after_exception(None, {0: RuntimeError("one")})
    callback.after_report(None, [report(6, 0.0, 0.0, partial=True)], checkpoint="there")
    callback.after_exception(None, {0: RuntimeError("two")})
    assert read_metrics(tmp_path) == []
    epochs = [line[-1] for line in ray.get(progress.update.remote()).news]
    assert epochs == ["5", "7"]  # the row of a checkpoint within counts epochs from 0


@ray.remote(num_cpus=0)
class Victim:
    def pid(self) -> int:
        return os.getpid()


def test_the_death_of_a_process_is_the_cause_whatever_else_failed(ray_session: None) -> None:
    victim = Victim.remote()  # type: ignore[attr-defined]
    os.kill(ray.get(victim.pid.remote()), signal.SIGKILL)
    with pytest.raises(ActorDiedError) as died:
        ray.get(victim.pid.remote())
    assert cause_of([RuntimeError("gloo"), died.value]).startswith("its process was killed")
    assert cause_of([RuntimeError("gloo\nat x")]) == "RuntimeError: gloo"


def test_a_loss_that_is_no_number_is_named_and_not_tried_again(
    ray_session: None, tmp_path: Path
) -> None:
    sums = EpochSums(3, 4, torch.device("cpu"))
    sums.values[1] = torch.inf
    with pytest.raises(Diverged, match=r"the semantic loss is inf: lower training.learning_rate"):
        sums.total()
    sums.values[1] = 5.0
    assert sums.total()[1] == 5
    callback = ReportCallback(str(tmp_path), start_progress(10, 1000, 150, 3))
    with pytest.raises(Diverged):
        callback.after_exception(None, {0: RuntimeError("gloo"), 1: Diverged("epoch 2")})
    assert callback.restarts == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_tiny(root)
    return root


def start_run(root: Path, run_id: str, **rates: float) -> subprocess.Popen[str]:
    config = {
        "data": {"shards": str(root / "packed"), "words": str(root / "words.txt")},
        "model": {"num_clusters": 20, "projection": 64},
        "training": {"epochs": 60, "batch_size": 24, **rates},
        "storage": str(root / "runs"),
    }
    path = root / f"{run_id}.yaml"
    path.write_text(yaml.safe_dump(config))
    return subprocess.Popen(
        [sys.executable, "-m", "distributed", "train", "--config", path, "--run-id", run_id],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.slow
def test_a_killed_worker_is_one_line_of_a_run_that_goes_on(root: Path) -> None:
    process = start_run(root, "killed")
    metrics = root / "runs" / "killed" / "metrics.jsonl"
    while not metrics.is_file():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.1)
    below = descendants(process.pid)
    workers = [pid for pid, title in below.items() if "RayTrainWorker" in title]
    os.kill(workers[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    said = [line for line in output.splitlines() if "a worker was lost" in line]
    assert len(said) == 1
    assert said[0].startswith("training    a worker was lost (its process was killed"), said
    assert "; 1 of 3 restarts, going on from epoch " in said[0]
    assert "(raylet)" not in output and "\x1b" not in output
    assert "clusters in use, 1 restart (" in output
    assert read_metrics(metrics.parent)[-1]["restarts"] == 1


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(root: Path) -> None:
    process = start_run(root, "interrupted")
    metrics = root / "runs" / "interrupted" / "metrics.jsonl"
    while not metrics.is_file():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "stopped; the same command with --run-id interrupted goes on from here" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_diverged_run_stops_at_once_with_one_line(root: Path) -> None:
    process = start_run(root, "diverged", learning_rate=1e30, regressor_learning_rate=1e30)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 2, output
    last = output.strip().splitlines()[-1]
    assert "training stopped: epoch 1: the " in last
    assert "lower training.learning_rate" in last
    assert "lost" not in output
