"""Nodes that are lost before and after training: in the features and in the embedding stage."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distributed.stages import finished_stages
from fault_runs import (
    CONFIG,
    PIXELS,
    Ended,
    assert_same_result,
    lines_with,
    record,
    stage_seconds,
    start_run,
)
from ray_nodes import Nodes, ray_nodes
from shards.config import PackConfig
from shards.pack.pack import pack
from tiny import UNSEEN, draw_tree, write_words

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny set of many shards, so that a stage is of many calls."""
    root = tmp_path_factory.mktemp("stages")
    draw_tree(root / "images", 30, 6)
    write_words(root / "words.txt")
    (root / "unseen.txt").write_text("\n".join(UNSEEN) + "\n")
    config = PackConfig(source=f"folder:{root / 'images'}", out=str(root / "packed"), workers=1)
    small = {"num_patches": 4, "short_side": 64, "images_per_shard": 6, "quality": 95}
    pack(replace(config, unseen=str(root / "unseen.txt"), **small))
    return root


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with ray_nodes(2) as nodes:
        yield nodes


def features_of(root: Path, name: str) -> dict[str, Any]:
    """A feature cache of a run's own."""
    return {"data": {"cache": str(root / name)}}


def units(root: Path, name: str) -> int:
    return len(list((root / name).rglob("*.safetensors")))


def test_a_node_that_is_lost_while_features_are_computed_costs_its_calls_alone(
    root: Path, nodes: Nodes
) -> None:
    whole = start_run(root, "whole", CONFIG, features_of(root, "whole-cache")).end()
    cluster = {"cluster": {"address": nodes.address}}
    own = features_of(root, "cache")
    run = start_run(root, "features", CONFIG, cluster, own, env=nodes.env)
    run.wait_until(lambda: units(root, "cache") >= 5, "features")
    nodes.lose()
    there = units(root, "cache")
    assert there < units(root, "whole-cache")
    nodes.add()
    ended = run.end()
    told = lines_with(ended, "others do its work", "waiting for")
    assert told and told[0].startswith("features ")
    _record("a node is lost while features are computed", told, root, ended, whole)


def test_a_node_that_is_lost_while_images_are_embedded_costs_its_calls_alone(
    root: Path, nodes: Nodes
) -> None:
    whole = start_run(root, "pixels-whole", PIXELS, features_of(root, "whole-cache")).end()
    cluster = {"cluster": {"address": nodes.address}}
    own = features_of(root, "whole-cache")
    run = start_run(root, "embedding", PIXELS, cluster, own, env=nodes.env)
    run.wait_until(lambda: "training" in finished_stages(str(run.folder)), "training")
    time.sleep(stage_seconds(whole.output, "embedding") / 2)
    nodes.lose()
    assert "embedding" not in finished_stages(str(run.folder))
    ended = run.end()
    told = lines_with(ended, "others do its work")
    assert told and told[0].startswith("embedding ")
    _record("a node is lost while images are embedded", told, root, ended, whole)


def _record(fault: str, told: list[str], root: Path, ended: Ended, whole: Ended) -> None:
    ours, theirs = (  # with the stage that fills the cache
        run.seconds + stage_seconds(run.output, "features") for run in (ended, whole)
    )
    record(
        fault,
        told,
        root,
        seconds=ours - theirs,
        difference=assert_same_result(ended.folder, whole.folder),
    )
