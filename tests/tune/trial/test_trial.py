"""One trial in this process: resumed, broken; and the start that trials share."""

import multiprocessing
import os
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distributed.features.cache import units_of
from distributed.features.kmeans_init import load_start
from distributed.train import trainer
from shards.manifest import load_manifest
from tune.space import with_params
from tune.trial import trainable
from tune.trial.checkpoints import delete_checkpoints, latest_checkpoint, store_checkpoint
from tune.trial.context import TrialContext, ensure_start, start_key
from tune.trial.evaluator import Evaluator
from tune.trial.objective import MEASURES
from tune.trial.trainable import cause_of, run_trial, trial_job
from tune_tiny import EPOCHS, make_search, make_trial_context
from vgse.errors import UserError

PARAMS = {"loss.entropy": 0.5, "model.num_clusters": 12, "training.learning_rate": 1e-2}


@pytest.fixture(scope="module")
def context(root: Path) -> TrialContext:
    return make_trial_context(root, root / "searches" / "one", make_search(root))


def rows_of(
    context: TrialContext, trial: str, params: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    run_trial(context, trial, params or PARAMS, rows.append)
    return rows


@pytest.fixture(scope="module")
def whole(context: TrialContext) -> list[dict[str, Any]]:
    return rows_of(context, "0001")


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_trial_reports_its_objective_and_health_every_epoch(whole: list[dict[str, Any]]) -> None:
    assert [row["epoch"] for row in whole] == list(range(1, EPOCHS + 1))
    assert all(0 <= row["objective"] <= 1 for row in whole)
    both = whole[0]["own_images"], whole[0]["harmonic_mean"]  # the default is their mean
    assert whole[0]["objective"] == pytest.approx(np.mean(both))
    assert whole[-1]["loss"] < whole[0]["loss"]
    assert 0 < whole[-1]["nmi"] < 1 and 2 <= whole[-1]["used_clusters"] <= 12
    assert all(row["seconds"] > 0 for row in whole)


class Killed(Exception):
    """Stands for the end of a trial's process, right after a report."""


def test_an_interrupted_trial_goes_on_and_ends_as_if_it_had_not_been(
    context: TrialContext, whole: list[dict[str, Any]]
) -> None:
    seen: list[int] = []

    def die_after_the_second(row: dict[str, Any]) -> None:
        seen.append(row["epoch"])
        if row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_trial(context, "0002", PARAMS, die_after_the_second)
    folder, history = latest_checkpoint(Path(context.folder), "0002")
    assert seen == [1, 2] and folder is not None and [row["epoch"] for row in history] == [1, 2]
    rows = rows_of(context, "0002")
    # The first two are told again from the checkpoint, seconds included: they were not trained.
    assert rows[:2] == history
    assert without_time(rows) == without_time(whole)


def test_a_trial_that_had_done_all_its_epochs_trains_no_more(
    context: TrialContext, whole: list[dict[str, Any]]
) -> None:
    assert rows_of(context, "0001") == whole


def test_a_loss_that_is_not_finite_has_a_cause_in_one_line(context: TrialContext) -> None:
    with pytest.raises(ValueError, match=r"loss is (nan|inf|not finite)") as caught:
        rows_of(context, "0004", PARAMS | {"training.learning_rate": 1e30})
    assert "lower training.learning_rate" in cause_of(caught.value)
    assert cause_of(MemoryError()) == "out of memory: MemoryError"
    assert cause_of(RuntimeError("CUDA out of memory.\nTried")).startswith("out of memory: CUDA")
    assert cause_of(KeyError("x")) == "KeyError: 'x'"


def out_of_memory(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")


def test_a_step_that_does_not_fit_is_the_users_to_mend_by_a_setting(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "run_step", out_of_memory)
    with pytest.raises(UserError, match=r"^out of GPU memory: lower training.batch_size") as raised:
        rows_of(context, "0007")
    assert "Tried to allocate 2.00 GiB" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("broken", [False, True])
def test_a_process_whose_gpu_is_lost_serves_no_other_trial(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    def synchronize() -> None:
        if broken:
            fail()

    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(trainable.tune, "report", rows.append)
    monkeypatch.setattr(trainable.ray, "get", lambda reference: None)
    monkeypatch.setattr(trainable, "run_trial", fail)
    with pytest.raises(RuntimeError, match="device-side") if broken else nullcontext():
        trainable.tune_trial({"trial": "0001", "params": {}}, [None])
    assert len(rows) == (0 if broken else 1)


def test_a_trial_whose_clusters_die_ends_as_collapsed(context: TrialContext) -> None:
    strict = replace(context, config=replace(context.config, collapse_share=1.0))
    # All clusters must be in use: with hardly any entropy loss and a large rate they are not.
    params = {"loss.entropy": 1e-6, "model.num_clusters": 16, "training.learning_rate": 0.5}
    rows = rows_of(strict, "0005", params)
    assert rows[-1]["epoch"] == 2 and "dead clusters" in rows[-1]["collapsed"]
    assert len(rows_of(context, "0006", params)) == EPOCHS  # the control
    assert rows_of(strict, "0005", params) == rows  # again: it is not gone on with


def test_the_evaluator_scores_the_checkpoint_and_not_the_start(
    context: TrialContext, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder, history = latest_checkpoint(Path(context.folder), "0001")
    assert folder is not None
    evaluator = Evaluator(context, trial_job(context, PARAMS), [])
    row = evaluator.row(history[-1], folder)
    measures = [row[name] for name in MEASURES]
    assert measures == [whole[-1][name] for name in MEASURES]
    other = tmp_path / "other"  # the same checkpoint with clusters anywhere
    shutil.copytree(folder, other)
    state = load_file(other / "model.safetensors")
    torch.manual_seed(0)
    state["head.centroids"] = torch.randn_like(state["head.centroids"])
    save_file(state, other / "model.safetensors")
    row = evaluator.row(history[-1], other)
    assert measures != [row[name] for name in MEASURES]


def test_only_the_last_whole_checkpoint_is_kept(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "state.json").write_text("{}")
    rows = [{"epoch": 1}]
    store_checkpoint(tmp_path, "0001", made, rows)
    store_checkpoint(tmp_path, "0001", made, [*rows, {"epoch": 2}])
    half = tmp_path / "checkpoints" / "0001" / ".part-00003"
    half.mkdir()
    folder, history = latest_checkpoint(tmp_path, "0001")
    assert folder is not None and folder.name == "epoch-00002" and len(history) == 2
    assert len(list(folder.parent.glob("epoch-*"))) == 1
    delete_checkpoints(tmp_path, "0001")
    assert latest_checkpoint(tmp_path, "0001") == (None, [])


def make_start(context: TrialContext, root: Path, gate: Any, out: Any) -> None:
    """In a process of its own: a start, the moment that all others try as well."""
    gate.wait()
    config = with_params(context.base, PARAMS)
    folder = ensure_start(replace(context, starts=str(root)), config)
    out.put(np.load(folder / "init" / "centroids.npy", allow_pickle=False).tobytes())


def test_one_start_serves_all_processes_and_survives_killed_writers(
    context: TrialContext, tmp_path: Path
) -> None:
    root = tmp_path / "starts"
    config = with_params(context.base, PARAMS)
    half = root / start_key(config, context.trained.tolist()) / "init"  # of a killed writer
    half.mkdir(parents=True)
    (half / "projection.npy").write_bytes(b"half")
    fork = multiprocessing.get_context("fork")
    gate, out = fork.Barrier(4), fork.Queue()
    arguments = (context, root, gate, out)
    processes = [fork.Process(target=make_start, args=arguments, daemon=True) for _ in range(4)]
    for process in processes:
        process.start()
    found = [out.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert len(set(found)) == 1 and len(list(root.iterdir())) == 1
    assert load_start(half)[0] is not None


def test_a_writer_killed_at_any_moment_leaves_a_whole_start_or_none(
    context: TrialContext, tmp_path: Path
) -> None:
    fork = multiprocessing.get_context("fork")
    for number, delay in enumerate((0.02, 0.1, 0.3)):
        root = tmp_path / str(number)
        gate, out = fork.Barrier(2), fork.Queue()
        process = fork.Process(target=make_start, args=(context, root, gate, out))
        process.start()
        gate.wait()
        time.sleep(delay)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for file in root.glob("*/init/centroids.npy"):
            assert np.load(file, allow_pickle=False).shape[0] == 12
    # Whoever comes next computes what is missing.
    gate, out = fork.Barrier(1), fork.Queue()
    make_start(context, tmp_path / "0", gate, out)
    assert out.get(timeout=10)


def test_starts_differ_by_what_they_depend_on_and_by_nothing_else(context: TrialContext) -> None:
    base, classes = context.base, context.trained.tolist()
    key = start_key(base, classes)
    other_loss = replace(base, loss=replace(base.loss, entropy=9.0))
    assert start_key(other_loss, classes) == key
    assert start_key(replace(base, seed=1), classes) != key
    assert start_key(base, classes[1:]) != key
    model = replace(base.model, num_clusters=12)
    assert start_key(replace(base, model=model), classes) != key


def test_features_of_training_images_serve_trials_and_runs(
    context: TrialContext, root: Path
) -> None:
    manifest = load_manifest(str(root / "packed"))
    assert Path(context.features).parent == root / "packed" / "features"
    files = {unit.file for unit in units_of(manifest, ["train"])}
    assert files <= {path.name for path in Path(context.features).iterdir()}
