"""Nodes that are lost in the middle of an epoch, on a cluster of several nodes."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from distributed.train.metrics import read_metrics
from distributed.train.ray_trainer import controller_settings, start_failures
from fault_runs import (
    CONFIG,
    Ended,
    assert_same_result,
    committed_step,
    difference,
    lines_with,
    only_line,
    record,
    start_run,
)
from ray_nodes import Nodes, ray_nodes
from vgse.config import ClusterConfig

IMAGES = 240
TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with ray_nodes(2) as nodes:
        yield nodes


def test_lost_workers_are_waited_for_as_configured_and_hardly_at_all_in_an_elastic_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(TIMEOUT, raising=False)
    with controller_settings(fixed := ClusterConfig(wait_for_workers=400)):
        assert float(os.environ[TIMEOUT]) * (start_failures(fixed) + 1) == 400
    assert TIMEOUT not in os.environ
    with controller_settings(elastic := ClusterConfig(min_workers=1, wait_for_workers=400)):
        assert float(os.environ[TIMEOUT]) <= 20
    assert start_failures(elastic) > elastic.max_failures  # one failed start for each loss
    monkeypatch.setenv(TIMEOUT, "7")
    with controller_settings(fixed):
        assert os.environ[TIMEOUT] == "7"


@pytest.mark.parametrize(("workers", "seconds"), [(2, 0.2), (1000, 4.0)])
def test_a_large_group_is_polled_less_often(
    workers: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
    monkeypatch.delenv(name, raising=False)
    with controller_settings(ClusterConfig(num_workers=workers)):
        assert float(os.environ[name]) == seconds


@pytest.mark.slow
def test_a_lost_node_that_is_replaced_costs_nothing_but_time(
    tiny_runs: Path, uninterrupted: Ended, nodes: Nodes
) -> None:
    cluster = {"cluster": {"address": nodes.address}}
    run = start_run(tiny_runs, "node", CONFIG, cluster, env=nodes.env)
    run.wait_for_checkpoints(20)
    nodes.lose()
    nodes.add()
    ended = run.end()
    told = lines_with(ended, "lost", "waiting for")
    causes = ("its node died", "it does not answer", "the connection to it was lost")
    assert any(cause in told[0] for cause in causes)
    assert "going on from epoch" in told[0]
    assert "state-dump" not in ended.output
    record(
        "a node is lost and replaced",
        told,
        tiny_runs,
        repeated_s=read_metrics(run.folder)[-1]["restart_seconds"],
        seconds=ended.seconds - uninterrupted.seconds,
        difference=assert_same_result(run.folder, uninterrupted.folder),
    )


@pytest.mark.slow
def test_a_node_that_nobody_replaces_ends_the_run_in_one_line_and_the_command_goes_on_later(
    tiny_runs: Path, uninterrupted: Ended, nodes: Nodes
) -> None:
    cluster = {"cluster": {"address": nodes.address, "wait_for_workers": 8}}
    run = start_run(tiny_runs, "alone", CONFIG, cluster, env=nodes.env)
    run.wait_for_checkpoints(20)
    nodes.lose()
    stopped = run.end(2)
    line = only_line(stopped)
    assert "no room for 2 workers within" in line
    assert "then run the same command again" in line
    nodes.add()
    again = start_run(tiny_runs, "alone", CONFIG, cluster, env=nodes.env).end()
    record(
        "a node is lost and not replaced; later the same command",
        [*lines_with(stopped, " lost ("), line],
        tiny_runs,
        seconds=stopped.seconds + again.seconds - uninterrupted.seconds,
        difference=assert_same_result(run.folder, uninterrupted.folder),
    )


@pytest.mark.slow
def test_an_elastic_run_goes_on_with_fewer_workers_and_takes_new_ones_in(
    tiny_runs: Path, nodes: Nodes
) -> None:
    epochs = 300  # long enough for a node to join before the end
    long = {"training": {"epochs": epochs, "checkpoint_epochs": 1, "checkpoint_steps": 0}}
    elastic = {"cluster": {"address": nodes.address, "min_workers": 1, "resize_interval": 3}}
    whole = start_run(tiny_runs, "elastic-whole", CONFIG, long).end()
    run = start_run(tiny_runs, "elastic", CONFIG, long, elastic, env=nodes.env)
    run.wait_for_checkpoints(20)
    nodes.lose()
    there = committed_step(run.folder)
    run.wait_for_checkpoints(there + 100)  # ten epochs with one worker
    nodes.add()
    ended = run.end()
    told = lines_with(ended, "lost", "now on")
    assert any("now on 1 worker instead of 2" in line for line in told)
    assert any("now on 2 workers instead of 1" in line for line in told)
    rows, others = read_metrics(run.folder), read_metrics(whole.folder)
    assert [row["epoch"] for row in rows] == list(range(1, epochs + 1))
    # What holds with another number of workers: every image once an epoch, in joint batches of
    # the same size. Which images share a batch changes, and with it the result a little.
    assert {row["images"] for row in rows} == {IMAGES}
    assert rows[-1]["step"] <= others[-1]["step"] + 2  # one short step for each change of size
    ours, theirs = (np.array([row["loss"] for row in found]) for found in (rows, others))
    assert np.abs(ours - theirs).max() < 0.1 * np.ptp(theirs)
    record(
        "elastic: a node is lost, later one is added",
        told,
        tiny_runs,
        repeated_s=rows[-1]["restart_seconds"],
        seconds=ended.seconds - whole.seconds,
        difference=difference(run.folder, whole.folder),
        loss_difference=float(abs(ours[-1] - theirs[-1])),
    )
