"""Runs of a tiny data set that tests interrupt, and the record of what came of it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from distributed.train.metrics import read_metrics
from processes import descendants
from vgse.formats import read_npz

ROOT = Path(__file__).resolve().parents[3]
LOG = "VGSE_FAULTS_LOG"
_ENV = {
    "PYTHONUNBUFFERED": "1",
    "RAY_memory_monitor_refresh_ms": "0",  # memory that neighbours take is not this run's fault
    "RAY_worker_niceness": "0",  # or busy neighbours starve the workers, not the driver
}
_SMALL: dict[str, Any] = {  # what is not under test costs little
    "model": {"num_clusters": 20, "projection": 64},
    "evaluation": {"models": ["prototype"]},
    "tracking": {"tensorboard": False},
}
_BACKBONE = {"patch_size": 32, "image_size": 32, "precision": "float32"}
CONFIG: dict[str, Any] = {
    **_SMALL,
    "backbone": _BACKBONE,
    "training": {
        "epochs": 16,
        "batch_size": 24,
        "learning_rate": 1e-2,
        "checkpoint_epochs": 2,
        "checkpoint_steps": 4,
        "checkpoints_kept": 3,
    },
}
PIXELS: dict[str, Any] = {  # a learning backbone reads the shards in every epoch
    **_SMALL,
    "backbone": {**_BACKBONE, "train": "last"},
    "training": {"epochs": 10, "batch_size": 24, "checkpoint_steps": 4},
}


@dataclass(frozen=True)
class Ended:
    """A run that is over."""

    folder: Path
    output: str  # both streams
    seconds: float  # of the process, without the stage that fills the feature cache


@dataclass
class Started:
    """A run under way."""

    process: subprocess.Popen[str]
    folder: Path
    began: float = field(default_factory=time.monotonic)

    def end(self, code: int = 0) -> Ended:
        """Wait for the end, which must be with this exit status."""
        output = "".join(part or "" for part in self.process.communicate(timeout=900))
        assert self.process.returncode == code, output
        took = time.monotonic() - self.began
        return Ended(self.folder, output, took - stage_seconds(output, "features"))

    def wait_until(self, true: Callable[[], bool], what: str, seconds: float = 600) -> None:
        """Until something is so, while the run goes on."""
        until = time.monotonic() + seconds
        while not true():
            if time.monotonic() > until:
                self.kill()
            if self.process.poll() is not None:
                raise AssertionError(f"no {what}:\n{self.process.communicate()[0]}")
            time.sleep(0.02)

    def wait_for_checkpoints(self, more_than: int = 0) -> None:
        """Until a checkpoint is committed that is not the first `more_than` ones."""
        self.wait_until(lambda: committed_step(self.folder) > more_than, "checkpoint")

    def kill(self) -> float:
        """End the driver and all it started, as a machine that goes down; its seconds."""
        below = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return time.monotonic() - self.began


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Sections of configurations; later ones win."""
    result: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            inner = isinstance(value, dict)
            result[name] = {**result.get(name, {}), **value} if inner else value
    return result


def config_of(root: Path, *parts: dict[str, Any]) -> dict[str, Any]:
    """A run on the packed set of `root`, with its folder below `root/runs`."""
    data = {"shards": str(root / "packed"), "words": str(root / "words.txt")}
    return merged({"data": data, "storage": str(root / "runs")}, *parts)


def start_run(
    root: Path,
    run_id: str,
    *parts: dict[str, Any],
    env: dict[str, str] | None = None,
    before: tuple[str, ...] = (),
    folder: Path | None = None,
) -> Started:
    """Start `python -m distributed train`.

    Args:
        root: where the packed set lies.
        run_id: name of the run.
        parts: sections of the configuration that differ from CONFIG.
        env: environment besides this process's own.
        before: a command that takes ours as its arguments.
        folder: where this process sees the run folder, if not below `root`.
    """
    config = config_of(root, *(parts or (CONFIG,)))
    path = root / f"{run_id}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [*before, sys.executable, "-m", "distributed", "train"]
    process = subprocess.Popen(
        [*command, "--config", str(path), "--run-id", run_id],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **_ENV, **(env or {})},
    )
    return Started(process, folder or Path(config["storage"]) / run_id)


def committed_step(run: Path) -> int:
    """Optimiser step of the last checkpoint that Ray would go on from; 0 without one."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        snapshot = json.loads((run / "checkpoint_manager_snapshot.json").read_text())
        name = snapshot["latest_checkpoint_result"]["checkpoint_dir_name"]
        return int(json.loads((run / name / "state.json").read_text())["position"]["step"])
    return 0


def stage_seconds(output: str, stage: str) -> float:
    """What the terminal says that a stage took; 0 if it says nothing."""
    found = re.findall(rf"^{stage} .*\((\d+) s\)$", output, re.MULTILINE)
    return float(found[-1]) if found else 0.0


def only_line(ended: Ended) -> str:
    """The one line that says why a run stopped, with the folders of this machine left out."""
    lines = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.output
    assert ended.output.rstrip().endswith(lines[0]), ended.output
    assert "Traceback" not in ended.output
    return lines[0]


def lines_with(ended: Ended, *words: str) -> list[str]:
    """Lines of the terminal that hold one of some words."""
    return [line for line in ended.output.splitlines() if any(word in line for word in words)]


def difference(run: Path, reference: Path) -> float:
    """The largest difference between the class embeddings of two runs."""
    ours, theirs = (read_npz(folder / "class_embeddings.npz") for folder in (run, reference))
    assert ours.class_names == theirs.class_names
    return float(np.abs(ours.embeddings - theirs.embeddings).max())


def assert_same_result(run: Path, reference: Path) -> float:
    """The losses of every epoch and the class embeddings; returns the embeddings' difference."""
    ours, theirs = (
        np.array([row["loss"] for row in read_metrics(folder)]) for folder in (run, reference)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    found = difference(run, reference)
    assert found <= 1e-5
    return found


def record(fault: str, told: list[str], root: Path, **figures: Any) -> None:
    """Add a line to the log that the environment names, of which docs/faults.md is made."""
    path = os.environ.get(LOG)
    if path:
        shown = [line.replace(str(root), "…").strip() for line in told]
        with open(path, "a") as file:
            file.write(json.dumps({"fault": fault, "told": shown, **figures}) + "\n")
