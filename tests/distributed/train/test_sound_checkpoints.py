"""Checkpoints that were cut short, and runs that go on from those before them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from distributed.run import train
from distributed.train.checkpoint import (
    damage,
    load_checkpoint,
    load_module,
    newest_sound,
    remove_leftovers,
    save_checkpoint,
)
from distributed.train.metrics import read_metrics
from tiny import make_tiny
from vgse.config import (
    BackboneConfig,
    ClusterConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from vgse.errors import UserError
from vgse.formats import read_npz
from vgse.training.model import ClusterHead, TrainingModel

NAMES = ["checkpoint_1", "checkpoint_2"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints."""
    head = ClusterHead(ModelConfig(num_clusters=4, projection=0), 6, 3, 5)
    head.start(None, torch.randn(4, 6))
    model = TrainingModel(None, head, torch.randn(3, 5), LossConfig())
    optimizer = torch.optim.AdamW(head.parameters())
    sum(parameter.sum() for parameter in head.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    for name in NAMES:
        (tmp_path / name).mkdir()
        save_checkpoint(tmp_path / name, model, optimizer, {"step": 1}, torch.zeros(3), "mark")
    return tmp_path


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def test_the_newest_checkpoint_is_taken_while_it_is_sound(run: Path) -> None:
    assert damage(str(run / NAMES[0])) is None
    assert newest_sound(str(run), NAMES) == ("checkpoint_2", [])
    assert newest_sound(str(run), []) == (None, [])


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (cut("model.safetensors", 200), "model.safetensors is cut short"),
        (cut("optimizer.safetensors", -1), "optimizer.safetensors is cut short"),
        (cut("queue.safetensors", 0), "queue.safetensors is cut short"),
        (cut("sums.safetensors", 20), "sums.safetensors is cut short"),
        (cut("state.json", 30), "state.json is cut short"),
        (lambda folder: (folder / "state.json").unlink(), "state.json is missing"),
        (shutil.rmtree, "model.safetensors is missing"),
    ],
)
def test_a_damaged_checkpoint_makes_way_for_the_one_before(
    run: Path, harm: Callable[[Path], None], why: str
) -> None:
    harm(run / NAMES[1])
    line = f"checkpoint_2 is damaged ({why}): going on from checkpoint_1"
    assert newest_sound(str(run), NAMES) == ("checkpoint_1", [line])


def test_without_a_sound_checkpoint_training_starts_anew(run: Path) -> None:
    for name in NAMES:
        cut("model.safetensors", 100)(run / name)
    found, lines = newest_sound(str(run), NAMES)
    assert found is None
    assert len(lines) == 2 and lines[0].endswith("training from the start")


def list_checkpoints(run: Path) -> Path:
    """Ray Train's list of the two checkpoints, as Ray 2.60 writes it."""
    rows = [{"version": 0, "checkpoint_dir_name": name, "metrics": {}} for name in NAMES]
    content: dict[str, Any] = {
        "ray_version": ray.__version__,
        "checkpoint_results": rows,
        "checkpoint_report_indices": [0, 1],
        "latest_checkpoint_result": rows[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": 2,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    path = run / "checkpoint_manager_snapshot.json"
    path.write_text(json.dumps(content))
    return path


def test_what_ray_does_not_know_and_what_is_half_written_is_removed(run: Path) -> None:
    shutil.copytree(run / NAMES[0], run / "checkpoint_3")
    (run / "init").mkdir()
    (run / ".list.json.ab12.partial").touch()
    list_checkpoints(run)
    remove_leftovers(str(run))
    assert not list(run.glob(".*"))
    assert {path.name for path in run.glob("*/")} == {*NAMES, "init"}
    remove_leftovers(str(run / "none"))


@pytest.mark.parametrize("harm", ["list", "folder"])
def test_a_damaged_list_or_a_missing_folder_is_one_line_with_the_remedy(
    run: Path, harm: str
) -> None:
    path = list_checkpoints(run)
    if harm == "list":
        path.write_text(path.read_text()[:40])
    else:
        shutil.rmtree(run / NAMES[0])
    with pytest.raises(UserError, match=r"put the files back, or .* another --run-id"):
        remove_leftovers(str(run))
    assert (run / NAMES[1]).is_dir(), "nothing is deleted on the word of a damaged list"


def test_a_checkpoint_of_other_losses_is_refused(run: Path) -> None:
    state = json.loads((run / NAMES[0] / "state.json").read_text())
    state["losses"] = ["classification", "toy"]
    (run / NAMES[0] / "state.json").write_text(json.dumps(state))
    model = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match="its losses are classification, toy"):
        load_checkpoint(run / NAMES[0], model, None, "mark")  # type: ignore[arg-type]


def test_a_checkpoint_of_a_network_with_other_weights_is_refused_in_one_line(run: Path) -> None:
    with pytest.raises(UserError, match=r"other weights \(such as .*another --run-id"):
        load_module(str(run / NAMES[0]), "head", torch.nn.Linear(1, 1))
    head = ClusterHead(ModelConfig(num_clusters=5, projection=0), 6, 3, 5)
    with pytest.raises(RuntimeError):  # of other sizes: a bug, which keeps its traceback
        load_module(str(run / NAMES[0]), "head", head)


@pytest.mark.slow
def test_a_run_whose_last_checkpoint_is_cut_short_ends_as_if_it_were_not(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny(tmp_path)
    config = RunConfig(
        data=DataConfig(shards=str(tmp_path / "packed"), words=str(tmp_path / "words.txt")),
        backbone=BackboneConfig(image_size=64),
        model=ModelConfig(num_clusters=20, projection=64),
        training=TrainingConfig(epochs=3, batch_size=60),
        cluster=ClusterConfig(num_workers=1),
        storage=str(tmp_path / "runs"),
    )
    run = train(config, "cut")
    before = read_npz(run / "class_embeddings.npz").embeddings
    losses = [row["loss"] for row in read_metrics(run)]
    last = max(run.glob("checkpoint_2*"))
    cut("model.safetensors", 1000)(last)
    for name in ("stages.json", "report.html", "class_embeddings.npz"):
        (run / name).unlink()  # as if training had not ended
    train(config, "cut")
    assert f"{last.name} is damaged (model.safetensors is cut short)" in capsys.readouterr().out
    assert max(run.glob("checkpoint_2*")) != last, "the last epoch was trained again"
    np.testing.assert_allclose([row["loss"] for row in read_metrics(run)], losses, rtol=1e-5)
    after = read_npz(run / "class_embeddings.npz").embeddings
    np.testing.assert_allclose(after, before, atol=1e-5)
