"""A run that is killed after each stage that follows training does only what it lacks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tiny import make_tiny
from vgse.formats import read_npz

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["training", "embedding", "relations", "pictures", "health", "evaluation", "report"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("late")
    make_tiny(root)
    config = {
        "data": {"shards": str(root / "packed"), "words": str(root / "words.txt")},
        "model": {"num_clusters": 20, "projection": 64},
        "training": {"epochs": 2, "batch_size": 60},
        "cluster": {"num_workers": 1},
        "storage": str(root / "runs"),
    }
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    return root


def start(root: Path, run_id: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "distributed", "train", "--config", str(root / "run.yaml")]
    return subprocess.Popen(
        [*command, "--run-id", run_id, *more],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    try:
        output, _ = process.communicate(timeout=570)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output
    return output.splitlines()


def done(run: Path) -> list[str]:
    try:
        return list(json.loads((run / "stages.json").read_text()))
    except FileNotFoundError:
        return []


def kill_after(process: subprocess.Popen[str], run: Path, stage: str) -> list[str]:
    """Kill a driver with all it started, as soon as a stage is in the record; what it said."""
    while stage not in done(run):
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    return output.splitlines()


def skipped(lines: list[str]) -> list[str]:
    there = [line.split()[0] for line in lines if " there already: " in line]
    return [stage for stage in there if stage in STAGES]


def test_each_restart_does_what_is_lacking_and_the_result_is_the_same(root: Path) -> None:
    whole, run = root / "runs" / "whole", root / "runs" / "killed"
    finish(start(root, "whole"))
    for stage in STAGES[:-1]:
        before = done(run)
        if stage in before:
            continue  # the stage before took so little that the kill came after both
        lines = kill_after(start(root, "killed"), run, stage)
        assert skipped(lines) == before, lines
        assert any(line.startswith("ray ") for line in lines) == ("embedding" not in before)
    before = done(run)
    lines = finish(start(root, "killed"))
    assert skipped(lines) == before
    assert done(run) == STAGES
    ours, theirs = (read_npz(folder / "class_embeddings.npz") for folder in (run, whole))
    np.testing.assert_allclose(ours.embeddings, theirs.embeddings, atol=1e-5)
    first, second = (json.loads((f / "evaluation.json").read_text()) for f in (run, whole))
    assert first["rows"] == second["rows"]


def test_a_finished_run_redoes_what_follows_the_embedding_with_new_settings(root: Path) -> None:
    run = root / "runs" / "whole"
    assert done(run) == STAGES, "the test above leaves it"
    refused = start(root, "whole")
    output, _ = refused.communicate(timeout=100)
    assert refused.returncode == 2 and "is finished" in output and output.count("\n") == 1
    lines = finish(start(root, "whole", "--resume", "--evaluation.models", "[prototype]"))
    assert skipped(lines) == ["training", "embedding"]
    assert json.loads((run / "evaluation.json").read_text())["models"] == ["prototype"]
