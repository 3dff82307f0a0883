"""Runs that are killed end with the embeddings of a run that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import make_tiny

from distributed.batches import Dataset, epoch_batches
from distributed.metrics import read_metrics
from distributed.position import Position, epoch_start, plan_of, restore_position
from shards.batches import Cut
from shards.cursor import select
from shards.manifest import load_manifest
from vgse.config import DataConfig, ModelConfig, RunConfig, TrainingConfig, to_dict
from vgse.formats import read_npz

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_tiny(root)
    return root


@pytest.fixture(scope="module")
def pixels(root: Path) -> Dataset:
    """The training images as a run with a learning backbone reads them."""
    manifest = load_manifest(str(root / "packed"))
    return Dataset(
        manifest=manifest,
        selection=select(manifest, "train", manifest.seen),
        label_of=torch.arange(len(manifest.class_names)),
        folder=None,
        cut=Cut("patches", 16),
        batch_size=30,
        loader_workers=0,
        max_damaged=0.0,
    )


def read(dataset: Dataset, position: Position, steps: int | None = None) -> list[list[int]]:
    """Image ids of each step, over all workers, from a position on."""
    plan = plan_of(position, dataset)
    found: list[list[int]] = [[] for _ in range(plan.steps - plan.first_step)][:steps]
    for rank in range(position.world_size):
        batches = epoch_batches(dataset, position.cursor, plan, rank, patch_size=16, device=CPU)
        for step, batch in zip(found, batches, strict=False):
            step += batch.images[batch.weights > 0].tolist()
    return found


def saved(position: Position, plan_step: int) -> dict[str, object]:
    """What a checkpoint after some steps says, through JSON as in the file."""
    state = replace(position, plan_step=plan_step, step=plan_step).to_dict()
    return json.loads(json.dumps(state))


def test_the_same_workers_go_on_with_the_batches_an_uninterrupted_run_sees(
    pixels: Dataset,
) -> None:
    start = epoch_start(pixels, 1, 0, seed=3, world_size=2)
    whole = read(pixels, start)
    resumed = restore_position(saved(start, 3), pixels, world_size=2)
    assert read(pixels, resumed) == whole[3:]
    other = epoch_start(pixels, 2, 0, seed=3, world_size=2)
    assert read(pixels, other) != whole


def test_each_image_is_read_once_with_one_then_two_then_three_workers(pixels: Dataset) -> None:
    position = epoch_start(pixels, 0, 0, seed=0, world_size=1)
    seen = [*chain(*read(pixels, position, steps=3))]
    position = restore_position(saved(position, 3), pixels, world_size=2)
    seen += chain(*read(pixels, position, steps=2))
    position = restore_position(saved(position, 2), pixels, world_size=3)
    seen += chain(*read(pixels, position))
    assert len(seen) == len(set(seen)) == 240


def write_config(root: Path, name: str) -> Path:
    config = RunConfig(
        data=DataConfig(shards=str(root / "packed"), words=str(root / "words.txt")),
        model=ModelConfig(num_clusters=20, projection=64),
        training=TrainingConfig(
            epochs=6, batch_size=24, learning_rate=1e-2, checkpoint_epochs=2, checkpoint_steps=4
        ),
        storage=str(root / "runs"),
    )
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    return path


def start_run(root: Path, run_id: str) -> subprocess.Popen[str]:
    config = write_config(root, run_id)
    return subprocess.Popen(
        [sys.executable, "-m", "distributed", "train", "--config", config, "--run-id", run_id],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def uninterrupted(root: Path) -> Path:
    finish(start_run(root, "uninterrupted"))
    return root / "runs" / "uninterrupted"


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str], more_than: int = 0) -> None:
    """Until a checkpoint is complete: state.json is the last file that is written."""
    for _ in range(3000):
        if len(list(run.glob("checkpoint_*/state.json"))) > more_than:
            return
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.02)
    raise AssertionError("no checkpoint within a minute")


def assert_same_result(run: Path, reference: Path) -> None:
    """The losses of every epoch, and the class embeddings."""
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in (run, reference)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    ours = read_npz(run / "class_embeddings.npz").embeddings
    theirs = read_npz(reference / "class_embeddings.npz").embeddings
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def children(pid: int) -> list[int]:
    """All processes below one, found in /proc."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            )
        except (OSError, IndexError, ValueError):
            continue
    found, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        own = [child for child, its in parents.items() if its == parent]
        found += own
        waiting += own
    return found


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(root: Path, uninterrupted: Path) -> None:
    process = start_run(root, "worker")
    run = root / "runs" / "worker"
    wait_for_checkpoint(run, process)
    workers = [pid for pid in children(process.pid) if "RayTrainWorker" in title(pid)]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    finish(process)
    assert_same_result(run, uninterrupted)


@pytest.mark.slow
def test_a_killed_driver_goes_on_when_started_again(root: Path, uninterrupted: Path) -> None:
    process = start_run(root, "driver")
    run = root / "runs" / "driver"
    wait_for_checkpoint(run, process)
    below = children(process.pid)
    process.kill()
    process.wait()
    for pid in below:  # a machine that went down takes its Ray with it
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    again = finish(start_run(root, "driver"))
    assert "init/centroids.npy is there already" in again
    assert_same_result(run, uninterrupted)
