"""Processes that compute on GPUs for a whole stage; here without the GPUs."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from distributed.features import actors
from distributed.features.actors import actor_results, remote_results, task_results
from distributed.features.cache import feature_spec, units_of
from distributed.features.extract import compute_unit
from shards.manifest import SPLITS, load_manifest
from tiny import make_tiny
from vgse.config import BackboneConfig, ClusterConfig
from vgse.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_session")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # processes do not find tests


def process_id() -> int:
    return os.getpid()


def test_calls_share_processes_that_last() -> None:
    found = list(actor_results(process_id, [()] * 24, 2, cpus=1, threads=2, gpus=0))
    assert len(found) == 24
    assert len(set(found)) == 2


def meet(folder: Path, own: str, other: str) -> bool:
    (folder / own).touch()
    for _ in range(30):
        if (folder / other).exists():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_takes_as_many_calls_at_once_as_it_has_threads(
    threads: int, tmp_path: Path
) -> None:
    calls = [(tmp_path, "a", "b"), (tmp_path, "b", "a")]
    found = list(actor_results(meet, calls, 1, cpus=1, threads=threads, gpus=0))
    assert found.count(True) == threads  # who comes second meets the first's mark in any case


def die_once(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def test_the_calls_of_a_process_that_dies_are_repeated(tmp_path: Path) -> None:
    calls = [(tmp_path / "mark",)]
    assert list(actor_results(die_once, calls, 1, cpus=1, threads=1, gpus=0)) == ["alive"]
    assert (tmp_path / "mark").exists()


def refuse() -> None:
    raise UserError("data.shards: no such folder")


def test_a_users_mistake_comes_back_as_it_was_raised() -> None:
    for results in (
        task_results(refuse, [()]),
        actor_results(refuse, [()], 1, cpus=1, threads=1, gpus=0),
    ):
        with pytest.raises(UserError, match=r"^data\.shards: no such folder$"):
            list(results)


def test_processes_end_with_the_stage_and_give_their_memory_back() -> None:
    (process,) = actor_results(process_id, [()], 1, cpus=1, threads=1, gpus=0)
    for _ in range(600):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"process {process} is still there")


def test_without_a_gpu_calls_are_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "actor_results", None)
    assert len(list(remote_results(process_id, [()] * 2, ClusterConfig(), False))) == 2


def test_no_more_processes_are_made_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(function: object, calls: object, count: int, **options: object) -> Iterator[None]:
        asked.append(count)
        yield

    monkeypatch.setattr(actors, "actor_results", noted)
    list(remote_results(process_id, [()] * 10, ClusterConfig(num_workers=4), True))
    assert asked == [1]  # there is no GPU: it waits for the first that comes


def test_features_computed_in_threads_are_those_computed_alone(tmp_path: Path) -> None:
    make_tiny(tmp_path, train=3, test=2)
    manifest = load_manifest(str(tmp_path / "packed"))
    spec = feature_spec(BackboneConfig(patch_size=32, image_size=32), "float32")
    units = units_of(manifest, SPLITS)
    assert len(units) == 3

    calls = [(manifest.url, unit, spec, str(tmp_path / "threads"), "cpu") for unit in units]
    assert len(list(actor_results(compute_unit, calls, 1, cpus=1, threads=3, gpus=0))) == 3
    for unit in units:
        compute_unit(manifest.url, unit, spec, str(tmp_path / "alone"), "cpu")
        found, expected = (load_file(tmp_path / f / unit.file) for f in ("threads", "alone"))
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, msg=f"{unit.file} {name}")
