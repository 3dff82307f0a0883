"""Runs that are killed end with the embeddings of a run that was not."""

import json
import os
import signal
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from distributed.train.data import (
    Dataset,
    Position,
    epoch_batches,
    epoch_start,
    plan_of,
    restore_position,
)
from distributed.train.metrics import read_metrics
from fault_runs import (
    CONFIG,
    Ended,
    assert_same_result,
    committed_step,
    lines_with,
    only_line,
    record,
    start_run,
)
from processes import descendants
from shards.loader import Cut
from shards.manifest import load_manifest
from shards.sampler import select

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pixels(tiny_runs: Path) -> Dataset:
    """The training images as a run with a learning backbone reads them."""
    manifest = load_manifest(str(tiny_runs / "packed"))
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
    left = plan.steps - plan.first_step
    found: list[list[int]] = [[] for _ in range(left if steps is None else min(left, steps))]
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


def checkpoints(run: Path) -> list[Path]:
    return sorted(run.glob("checkpoint_*/"))


@pytest.mark.slow
def test_as_many_checkpoints_stay_as_the_configuration_says(uninterrupted: Ended) -> None:
    kept = checkpoints(uninterrupted.folder)
    assert len(kept) == CONFIG["training"]["checkpoints_kept"]
    assert kept[-1].joinpath("state.json").is_file()
    assert committed_step(uninterrupted.folder) == 10 * CONFIG["training"]["epochs"]


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(tiny_runs: Path, uninterrupted: Ended) -> None:
    run = start_run(tiny_runs, "worker")
    run.wait_for_checkpoints(20)
    step = committed_step(run.folder)
    assert step % 10 in (4, 8) or step % 20 == 0  # every 4 steps, and every second epoch
    below = descendants(run.process.pid)
    workers = [pid for pid, title in below.items() if "RayTrainWorker" in title]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    ended = run.end()
    told = lines_with(ended, " lost (")
    assert "its process was killed" in told[0]
    assert len(checkpoints(run.folder)) == CONFIG["training"]["checkpoints_kept"]
    record(
        "a worker is killed (SIGKILL)",
        told,
        tiny_runs,
        repeated_s=read_metrics(run.folder)[-1]["restart_seconds"],
        seconds=ended.seconds - uninterrupted.seconds,
        difference=assert_same_result(run.folder, uninterrupted.folder),
    )


@pytest.mark.slow
def test_a_killed_driver_goes_on_when_started_again_with_the_same_configuration_only(
    tiny_runs: Path, uninterrupted: Ended
) -> None:
    run = start_run(tiny_runs, "driver")
    run.wait_for_checkpoints(20)
    seconds = run.kill()  # a machine that went down takes its Ray with it
    other = {"training": {"learning_rate": 2e-2}}
    line = only_line(start_run(tiny_runs, "driver", CONFIG, other).end(2))
    assert "choose another --run-id" in line
    record("the same run id with another learning rate", [line], tiny_runs)
    again = start_run(tiny_runs, "driver").end()
    told = lines_with(again, "clusters    there already")
    assert "there already: init/centroids.npy" in told[0]
    assert len(checkpoints(run.folder)) == CONFIG["training"]["checkpoints_kept"]
    record(
        "the driver and its Ray are killed; the same command",
        told,
        tiny_runs,
        seconds=seconds + again.seconds - uninterrupted.seconds,
        difference=assert_same_result(run.folder, uninterrupted.folder),
    )
