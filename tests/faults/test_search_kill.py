"""Searches whose driver or trials are killed, on a Ray of their own with two CPUs; and as a job."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from processes import descendants
from ray_head import ray_head
from ray_nodes import ray_nodes
from tune.config import SearchConfig, to_dict
from tune.study import TrialRecord, read_trials
from tune_tiny import make_search, make_tiny

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
LONG = 1200.0
QUIET = {  # busy neighbours are no fault of the search
    "OMP_NUM_THREADS": "1",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_niceness": "0",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kill")
    make_tiny(root, train=12, test=4)
    return root


def command(config: SearchConfig, folder: Path, name: str, *more: str) -> list[str]:
    """`python -m tune search` with this configuration."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    return [
        sys.executable,
        "-m",
        "tune",
        "search",
        "--config",
        str(file),
        "--search-id",
        name,
        *more,
    ]


def start(arguments: list[str], cluster: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """The command with a Ray of its own, or with the environment of a cluster."""
    env = cluster or {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=env | QUIET,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def until(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Wait for something that the search does."""
    give_up = time.monotonic() + LONG
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up, "it never came to that"
        time.sleep(0.05)


def states(records: list[TrialRecord]) -> list[str]:
    return [record.state for record in records]


def test_a_killed_driver_loses_no_finished_trial_and_repeats_no_finished_epoch(
    root: Path,
) -> None:
    config = make_search(root, trials=5, grace_epochs=8)  # ASHA stops none: all do eight epochs
    config.run.training.epochs = 8
    folder = root / "searches" / "driver"
    process = start(command(config, root, "driver"))

    def midway() -> bool:
        records = read_trials(folder)
        running = [r for r in records if not r.ended and 2 <= r.epoch < 7]
        return "finished" in states(records) and bool(running)

    until(process, midway)
    before = {record.name: record for record in read_trials(folder)}
    below = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    give_up = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < give_up:
        time.sleep(0.2)  # Ray's processes see that their driver is gone
    assert sum(record.ended for record in before.values()) < 5
    again = start(command(config, root, "driver", "--resume"))
    out = again.communicate(timeout=LONG)[0]
    assert again.returncode == 0, out
    after = {record.name: record for record in read_trials(folder)}
    assert states(list(after.values())) == ["finished"] * 5
    for name, record in before.items():
        if record.ended:
            assert after[name] == record
        else:  # every epoch that was written down is the same one: seconds and all
            assert after[name].history[: record.epoch] == record.history
            assert after[name].epoch == 8
    assert out.strip().endswith(str(folder / "search.html"))


def test_a_lost_node_costs_no_finished_trial_and_no_finished_epoch(root: Path) -> None:
    epochs = 60
    config = make_search(root, trials=4, grace_epochs=epochs)
    config.run.training.epochs = epochs
    folder = root / "searches" / "node"
    with ray_nodes(1) as nodes:
        config.run.cluster.address = nodes.address
        process = start(command(config, root, "node"), nodes.env)

        def midway() -> bool:
            records = read_trials(folder)
            running = [r for r in records if not r.ended and 2 <= r.epoch < epochs - 10]
            return "finished" in states(records) and bool(running)

        until(process, midway)
        before = {record.name: record for record in read_trials(folder)}
        nodes.lose()
        nodes.add()
        out = process.communicate(timeout=LONG)[0]
    assert process.returncode == 0, out
    after = {record.name: record for record in read_trials(folder)}
    assert states(list(after.values())) == ["finished"] * 4
    for name, record in before.items():
        assert after[name].history[: record.epoch] == record.history
    assert " goes on: its process was lost" in out, out
    assert "Traceback" not in out, out


def test_an_interrupt_keeps_all_and_says_how_to_go_on(root: Path) -> None:
    config = make_search(root, trials=4)
    config.run.training.epochs = 6
    folder = root / "searches" / "interrupt"
    process = start(command(config, root, "interrupt"))
    until(process, lambda: any(r.epoch >= 2 for r in read_trials(folder)))
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=LONG)[0]
    assert process.returncode == 130, out
    assert "--search-id interrupt --resume goes on from here" in out
    assert "Traceback" not in out, out
    assert "running" in states(read_trials(folder))
    again = start(command(config, root, "interrupt", "--resume"))
    out = again.communicate(timeout=LONG)[0]
    assert again.returncode == 0, out
    assert len(read_trials(folder)) == 4 and "running" not in states(read_trials(folder))


def trial_processes(pid: int) -> list[int]:
    found = descendants(pid)
    return [child for child, args in found.items() if args.startswith("ray::ImplicitFunc")]


@pytest.mark.parametrize("chances", [1, 0])
def test_a_trial_whose_process_is_killed_goes_on_or_is_recorded(root: Path, chances: int) -> None:
    name = f"trial{chances}"
    config = make_search(root, trials=3, grace_epochs=8, max_failures=chances, max_concurrent=1)
    config.run.training.epochs = 8
    folder = root / "searches" / name
    process = start(command(config, root, name))

    def second_trial_is_midway() -> bool:
        return any(r.name == "0001" and 2 <= r.epoch < 7 for r in read_trials(folder))

    until(process, second_trial_is_midway)
    before = read_trials(folder)[1]
    (worker,) = trial_processes(process.pid)
    os.kill(worker, signal.SIGKILL)
    out = process.communicate(timeout=LONG)[0]
    assert process.returncode == 0, out
    first, second, third = read_trials(folder)
    assert (first.state, third.state) == ("finished", "finished")
    assert second.history[: before.epoch] == before.history
    if chances:
        assert (second.state, second.epoch) == ("finished", 8)
        assert "0001 goes on: its process was lost" in out
    else:
        assert second.state == "failed" and "its process was lost" in str(second.cause)
        assert "0001 failed" in out


@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_does_not_block_itself_on_two_cpus(root: Path, workers: int) -> None:
    """More trials at a time are asked for than there is room for, of one worker and of two."""
    name = f"two{workers}"
    config = make_search(root, trials=3, workers_per_trial=workers, max_concurrent=3)
    process = start(command(config, root, name))
    out = process.communicate(timeout=LONG)[0]
    assert process.returncode == 0, out
    records = read_trials(root / "searches" / name)
    assert len(records) == 3 and set(states(records)) <= {"finished", "stopped"}


def test_a_search_runs_as_a_job_of_a_cluster_and_is_resumed_there(root: Path) -> None:
    with ray_head() as head:
        shutil.copytree(ROOT / "tune", head.checkout / "tune", dirs_exist_ok=True)
        config = make_search(root, trials=3, finalists=1)
        config.run.storage = str(head.folder / "searches")
        (head.checkout / "mine.yaml").write_text(yaml.safe_dump(to_dict(config)))
        job = ("submit", "--address", head.address, "--run-id", "search")
        search = ("tune", "search", "--config", "mine.yaml", "--search-id", "there")
        code, out, err = head.run(*job, "--", *search)
        assert code == 0, err + out
        folder = head.folder / "searches" / "there"
        assert str(folder / "search.html") in out
        assert len(read_trials(folder)) == 3 and "running" not in states(read_trials(folder))
        final: dict[str, Any] = json.loads((folder / "final.json").read_text())
        assert len(final["test_opened"]) == 4  # two splits, of the default and of the finalist
        code, out, err = head.run(*job, "--", *search)
        assert code == 2 and "this search is there already; add --resume" in out
        code, out, err = head.run(*job, "--", *search, "--resume", "--trials", "4")
        assert code == 0, err + out
        assert len(read_trials(folder)) == 4
