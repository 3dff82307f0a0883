"""Checkpoints that were cut short, and runs that go on from those before them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from distributed.run import train
from distributed.train.checkpoint import LIST, damage, drop_damaged, save_checkpoint
from distributed.train.metrics import read_metrics
from tiny import make_tiny
from vgse.config import (
    ClusterConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from vgse.formats import read_npz
from vgse.training.model import ClusterHead, TrainingModel

NAMES = ("checkpoint_1", "checkpoint_2")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints and Ray's list of them."""
    head = ClusterHead(ModelConfig(num_clusters=4, projection=0), 6, 3, 5)
    head.start(None, torch.randn(4, 6))
    model = TrainingModel(None, head, torch.randn(3, 5), LossConfig())
    optimizer = torch.optim.AdamW(head.parameters())
    sum(parameter.sum() for parameter in head.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    rows = []
    for name in NAMES:
        (tmp_path / name).mkdir()
        save_checkpoint(tmp_path / name, model, optimizer, {"step": 1}, torch.zeros(3), "mark")
        rows.append({"version": 0, "checkpoint_dir_name": name, "metrics": {}})
    content = {"checkpoint_results": rows, "checkpoint_report_indices": [0, 1]}
    content["latest_checkpoint_result"] = rows[-1]  # type: ignore[assignment]
    (tmp_path / LIST).write_text(json.dumps(content))
    return tmp_path


def listed(run: Path) -> tuple[list[str], str | None, list[int]]:
    content = json.loads((run / LIST).read_text())
    names = [row["checkpoint_dir_name"] for row in content["checkpoint_results"]]
    latest = content["latest_checkpoint_result"]
    indices = content["checkpoint_report_indices"]
    return names, latest and latest["checkpoint_dir_name"], indices


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def test_sound_checkpoints_stay(run: Path) -> None:
    before = (run / LIST).read_bytes()
    assert damage(str(run / NAMES[0])) is None
    assert drop_damaged(str(run)) == []
    assert (run / LIST).read_bytes() == before
    assert drop_damaged(str(run / "none")) == [], "a run without checkpoints"


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
    assert drop_damaged(str(run)) == [
        f"checkpoint_2 is damaged ({why}): going on from checkpoint_1"
    ]
    assert listed(run) == (["checkpoint_1"], "checkpoint_1", [0])


def test_without_a_sound_checkpoint_training_starts_anew(run: Path) -> None:
    for name in NAMES:
        cut("model.safetensors", 100)(run / name)
    lines = drop_damaged(str(run))
    assert len(lines) == 2 and lines[0].endswith("training from the start")
    assert listed(run) == ([], None, [])


def test_a_damaged_list_is_one_line_with_the_remedy(run: Path) -> None:
    (run / LIST).write_text('{"checkpoint_results": [')
    with pytest.raises(ValueError, match=rf"{LIST}: damaged .* delete it to train from the start"):
        drop_damaged(str(run))


@pytest.mark.slow
def test_a_run_whose_last_checkpoint_is_cut_short_ends_as_if_it_were_not(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny(tmp_path)
    config = RunConfig(
        data=DataConfig(shards=str(tmp_path / "packed"), words=str(tmp_path / "words.txt")),
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
