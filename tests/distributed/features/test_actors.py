"""Processes that compute on GPUs for a whole stage; here without the GPUs."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from distributed.features.actors import gpu_processes, remote_function, results_of
from distributed.features.cache import Unit, feature_spec, units_of
from distributed.features.extract import compute_unit
from shards.manifest import SPLITS, load_manifest
from tiny import make_tiny
from vgse.config import BackboneConfig, ClusterConfig

pytestmark = pytest.mark.usefixtures("ray_session")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # processes do not find tests


def process_and_thread(seconds: float) -> tuple[int, int]:
    time.sleep(seconds)
    return os.getpid(), threading.get_ident()


def test_calls_share_processes_that_last() -> None:
    with gpu_processes(process_and_thread, 2, cpus=1, threads=2, gpus=0) as processes:
        calls = ((processes, (0.05,)) for _ in range(24))
        found = list(results_of(calls, limit=6))
    assert len({process for process, _ in found}) == 2
    served = [sum(process == one for process, _ in found) for one in {p for p, _ in found}]
    assert min(served) >= 6


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
    with gpu_processes(meet, 1, cpus=1, threads=threads, gpus=0) as processes:
        calls = [processes.remote(tmp_path, "a", "b"), processes.remote(tmp_path, "b", "a")]
        first, second = ray.get(calls)
    assert first == (threads == 2)
    assert second  # the first has been there by then


def die_once(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def test_the_calls_of_a_process_that_dies_are_repeated(tmp_path: Path) -> None:
    with gpu_processes(die_once, 1, cpus=1, threads=1, gpus=0) as processes:
        assert ray.get(processes.remote(tmp_path / "mark"), timeout=60) == "alive"
    assert (tmp_path / "mark").exists()


def test_processes_end_with_the_stage_and_give_their_memory_back() -> None:
    with gpu_processes(process_and_thread, 1, cpus=1, threads=1, gpus=0) as processes:
        process, _ = ray.get(processes.remote(0))
        os.kill(process, 0)
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"process {process} is still there")


def test_without_a_gpu_calls_are_tasks() -> None:
    with remote_function(process_and_thread, ClusterConfig(), False, 2) as task:
        assert len(ray.get([task.remote(0) for _ in range(2)])) == 2
        assert isinstance(task, ray.remote_function.RemoteFunction)


def test_no_more_processes_are_made_than_there_is_room_for() -> None:
    config = ClusterConfig(num_workers=4)
    with remote_function(process_and_thread, config, True, 10) as processes:
        assert len(processes.actors) == 1  # there is no GPU: it waits for the first that comes


def test_features_computed_in_threads_are_those_computed_alone(tmp_path: Path) -> None:
    make_tiny(tmp_path, train=3, test=2)
    manifest = load_manifest(str(tmp_path / "packed"))
    spec = feature_spec(BackboneConfig(), "float32")
    units = units_of(manifest, SPLITS)
    assert len(units) == 3

    def arguments(unit: Unit, folder: str) -> tuple[object, ...]:
        return manifest.url, unit, spec, str(tmp_path / folder), "cpu"

    with gpu_processes(compute_unit, 1, cpus=1, threads=3, gpus=0) as processes:
        ray.get([processes.remote(*arguments(unit, "threads")) for unit in units])
    for unit in units:
        compute_unit(manifest.url, unit, spec, str(tmp_path / "alone"), "cpu")
        found, expected = (load_file(tmp_path / f / unit.file) for f in ("threads", "alone"))
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, msg=f"{unit.file} {name}")
