"""Processes that compute on GPUs for a whole stage; here without the GPUs."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.exceptions
import torch
from safetensors.torch import load_file

from distributed.features import actors
from distributed.features.actors import (
    BrokenGpu,
    Process,
    _Caller,
    actor_results,
    call_results,
    remote_results,
    task_results,
)
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


def meet(folder: Path, own: str, other: str, seconds: float = 3) -> bool:
    (folder / own).touch()
    for _ in range(round(10 * seconds)):
        if (folder / other).exists():
            return True
        time.sleep(0.1)
    return False


def meet_in(folder: Path, own: str, other: str) -> tuple[bool, int]:
    return meet(folder, own, other, seconds=60), os.getpid()


def test_calls_share_processes_that_last(tmp_path: Path) -> None:
    first = [(tmp_path, "a", "b"), (tmp_path, "b", "a")]  # each waits for the other's process
    calls = [*first, *[(tmp_path, "c", "a")] * 22]
    found = list(actor_results(meet_in, calls, 2, cpus=1, threads=1, gpus=0))
    assert [met for met, _ in found] == [True] * 24
    assert len({process for _, process in found}) == 2


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


@pytest.mark.parametrize("least", [None, 1])
def test_a_run_asks_for_a_process_for_each_of_its_workers_and_uses_those_it_gets(
    least: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(function: object, calls: object, count: int, **options: object) -> Iterator[None]:
        asked.append(count)
        yield

    with monkeypatch.context() as patch:
        patch.setattr(actors, "actor_results", noted)
        list(
            remote_results(
                process_id, [()] * 10, ClusterConfig(num_workers=4, min_workers=least), True
            )
        )
    assert asked == [4]
    # As many as there are CPUs take all calls; the others wait in Ray and end with the stage.
    found = list(actor_results(process_id, [()] * 8, 50, cpus=2, threads=1, gpus=0))
    assert 1 <= len(set(found)) <= ray.cluster_resources()["CPU"] // 2


def die_or_answer(mark: Path, number: int) -> int:
    if number == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_calls_of_a_dead_process_go_to_others_where_there_is_no_room_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "_PAUSES_S", (0.0,) * 5)
    lines: list[str] = []
    calls = [(tmp_path / "mark", number) for number in range(12)]
    room = iter([2])  # that of the lost process does not come back

    def started() -> Process:
        actor: Any = ray.remote(num_cpus=1)(_Caller).options(max_concurrency=2).remote()
        call = actor.call.remote
        return Process(lambda f, a: call(f, *a), 2, actor.ready.remote(), lambda: ray.kill(actor))

    found = call_results(die_or_answer, calls, started, lambda: next(room, 0), say=lines.append)
    assert sorted(found) == list(range(12))
    assert (tmp_path / "mark").exists()
    assert lines == [
        "a process was lost (its process was killed or crashed, or its node died); "
        "others do its work"
    ]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_call_that_always_kills_its_process_ends_the_stage_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actors, "_PAUSES_S", (0.0,))
    with pytest.raises(UserError, match=r"was killed or crashed.*; run the same command again"):
        list(task_results(die, [()]))


def break_gpu_once(mark: Path) -> int:
    if not mark.exists():
        mark.touch()

        def fail() -> None:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with")

        torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, fail  # type: ignore
        fail()
    return os.getpid()


def test_a_process_whose_gpu_fails_is_ended_and_another_repeats_its_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "_PAUSES_S", (0.0,) * 5)
    lines: list[str] = []
    calls = [(tmp_path / "mark",)] * 4
    found = actor_results(break_gpu_once, calls, 1, cpus=1, threads=1, gpus=0, say=lines.append)
    assert len(set(found)) == 1  # by the second process, whose GPU is whole
    (line,) = lines
    assert re.fullmatch(
        r"a process was lost \(the GPU of [\d.]+ failed: CUDA error: device-side assert "
        r"triggered\); others do its work",
        line,
    )


FAULT = "the GPU of 10.0.0.7 failed: CUDA error: device-side assert triggered"
BROKEN = ray.exceptions.RayTaskError("call", "Traceback", BrokenGpu(FAULT))


def test_a_gpu_that_fails_again_and_again_ends_the_stage_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actors, "_PAUSES_S", (0.0,) * 5)
    made: list[Process] = []

    def started() -> Process:
        made.append(Process(lambda *_: ray.put(BROKEN), 3, ray.put(None), lambda: None))
        return made[-1]

    with pytest.raises(UserError, match=rf"^{FAULT} \(in new .*dmesg.*use_gpu to no") as raised:
        list(call_results(abs, [(1,)], started, lambda: 1))
    assert "\n" not in str(raised.value)
    assert len(made) == 6


def test_starts_that_fail_end_no_stage_that_others_work_for() -> None:
    whole: list[Process] = []
    starts = 0

    def started() -> Process:
        nonlocal starts
        starts += 1
        broken = Process(lambda *_: None, 1, ray.put(BROKEN), lambda: None)
        return whole.pop() if whole else broken

    with pytest.raises(UserError, match=f"^{FAULT} .in new processes too"):
        list(call_results(abs, [(1,)], started, lambda: 3))
    starts = 0
    whole.append(Process(lambda function, given: ray.put(function(*given)), 1))
    found = call_results(abs, [(number,) for number in range(30)], started, lambda: 3)
    assert sorted(found) == [*range(30)]
    assert starts < 20


def test_an_error_beside_a_gpu_that_works_is_the_calls_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def divide() -> float:
        return 1 / 0

    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with pytest.raises(ZeroDivisionError):
        _Caller().call(divide)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(BrokenGpu, match="failed: division by zero"):
        _Caller().call(divide)


def test_a_process_on_a_gpu_that_does_not_compute_takes_no_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    with pytest.raises(BrokenGpu, match=r"the GPU of [\d.]+ does not compute: "):
        _Caller().ready()
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    _Caller().ready()


def test_without_room_for_any_process_the_stage_waits_as_configured_and_says_so() -> None:
    waiting = actor_results(process_id, [()], 1, cpus=1000, threads=1, gpus=0, patience=0)
    with pytest.raises(UserError, match=r"no room for a process .* within 0 s \(cluster.wait_for"):
        list(waiting)


def test_one_look_at_all_calls_serves_every_result_that_has_come() -> None:
    looks = 0
    plain = ray.wait

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal looks
        looks += 1
        return plain(*arguments, **options)

    def started() -> Process:
        return Process(lambda function, given: ray.put(function(*given)), 5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "wait", counted)
        calls = [(number,) for number in range(300)]
        assert sorted(call_results(abs, calls, started, lambda: 20)) == list(range(300))
    assert looks <= 2 * 300 / (20 * 5)


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
