"""Whole runs on a GPU: `pytest -m gpu tests/e2e/test_gpu_run.py` on a machine with one."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from safetensors.torch import load_file

from distributed.features.actors import actor_results
from distributed.features.cache import feature_spec, units_of
from distributed.features.extract import compute_unit
from distributed.run import train
from distributed.train.metrics import read_metrics
from shards.manifest import SPLITS, load_manifest
from tiny import make_tiny
from vgse.config import (
    BackboneConfig,
    ClusterConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_tiny(root)
    return root


@pytest.mark.parametrize("part", ["none", "all"])
def test_a_run_on_a_gpu_learns_and_embeds_every_class(
    root: Path, part: Literal["none", "all"]
) -> None:
    config = RunConfig(
        data=DataConfig(shards=str(root / "packed"), words=str(root / "words.txt")),
        backbone=BackboneConfig(train=part),
        model=ModelConfig(num_clusters=20, projection=64),
        training=TrainingConfig(epochs=4, batch_size=60, learning_rate=1e-2),
        cluster=ClusterConfig(num_workers=1, use_gpu="yes"),
        storage=str(root / "runs"),
    )
    run = train(config, f"gpu-{part}")
    rows = read_metrics(run)
    assert rows[-1]["loss"] < rows[0]["loss"]
    with np.load(run / "class_embeddings.npz") as file:
        own = file["own_embeddings"]
    assert np.isfinite(own).all()
    np.testing.assert_allclose(own.sum(1), 1, atol=1e-3)
    again = train(replace(config, storage=str(root / "again")), f"gpu-{part}")
    assert read_metrics(again)[-1]["nmi"] == pytest.approx(rows[-1]["nmi"], abs=0.1)


def test_features_of_a_gpu_are_those_of_the_cpu(root: Path, tmp_path: Path) -> None:
    manifest = load_manifest(str(root / "packed"))
    spec = feature_spec(BackboneConfig(), "float32")
    units = units_of(manifest, SPLITS)
    calls = ((manifest.url, unit, spec, str(tmp_path / "gpu"), "cuda") for unit in units)
    results = list(actor_results(compute_unit, calls, 1, cpus=1, threads=3))
    assert len(results) == len(units)
    for unit in units:
        compute_unit(manifest.url, unit, spec, str(tmp_path / "cpu"), "cpu")
        found, expected = (load_file(tmp_path / d / unit.file) for d in ("gpu", "cpu"))
        for name in ("images", "patches"):
            gap = (found[name].float() - expected[name].float()).norm()
            assert gap < 0.01 * expected[name].float().norm()  # cuDNN multiplies in TF32
