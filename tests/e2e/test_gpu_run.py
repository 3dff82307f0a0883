"""Whole runs on a GPU: `pytest -m gpu tests/e2e/test_gpu_run.py` on a machine with one. The same
tests run on the CPU by `pytest -m slow`, which shows where they have grown old."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file

import tiny
from distributed.display import Display
from distributed.embedding.embed import Encoder, embed_units
from distributed.embedding.results import own_embeddings
from distributed.features.actors import actor_results
from distributed.features.cache import feature_spec, units_of
from distributed.features.extract import compute_unit, run_features
from distributed.run import train
from distributed.setup import prepare
from distributed.stages import finished_stages
from distributed.train.checkpoint import load_module
from distributed.train.metrics import read_metrics
from distributed.train.ray_trainer import training_job
from distributed.train.trainer import build_model
from shards.manifest import SPLITS, load_manifest
from vgse.config import (
    BackboneConfig,
    ClusterConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)

pytestmark = pytest.mark.usefixtures("ray_session")
Part = Literal["none", "all"]
Device = Literal["cpu", "cuda"]
on_either = pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)],
)

# Runs of the tiny set in which none, the last block or all of θ learned, emulated on a CPU in
# bfloat16 and float32, with several seeds and, in place of a GPU's rounding, weights and k-means'
# patches off by 0.1%: the loss fell by 0.45 to 0.55, with pictures under any class by 0.10 to 0.13.
LEAST_FALL = 0.25
# Embeddings by bfloat16 are 0.01 to 0.02 away from those by float32 with the same weights; with θ
# (or, where it is frozen, the head) as it was at the start, 0.20 (last block) to 0.49.
MOST_ROUNDING = 0.05
# NMI lay in 0.595 to 0.666, whatever the seed, and within 0.025 under such rounding; with pictures
# under any class at 0.13. Embeddings correlated by 0.94 or more, by 0.81 if one run was in bfloat16
# and one in float32; between seeds by 0.37 or less, with those of other classes by 0.16 or less.
MOST_APART, LEAST_CORRELATION = 0.15, 0.6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    tiny.make_tiny(root)
    return root


def config_of(root: Path, part: Part, device: Device, runs: str) -> RunConfig:
    return RunConfig(
        data=DataConfig(shards=str(root / "packed"), words=str(root / "words.txt")),
        backbone=BackboneConfig(train=part),
        model=ModelConfig(num_clusters=20, projection=64),
        training=TrainingConfig(epochs=4, batch_size=60, learning_rate=1e-2),
        cluster=ClusterConfig(num_workers=1, use_gpu="yes" if device == "cuda" else "no"),
        storage=str(root / runs),
    )


def losses_of(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run)]


def embeddings_of(run: Path) -> NDArray[np.float32]:
    """A run's own embeddings [C, D_v]."""
    with np.load(run / "class_embeddings.npz", allow_pickle=False) as file:
        found: NDArray[np.float32] = file["own_embeddings"]
    return found


def embedded_anew(config: RunConfig, run: Path, *modules: str) -> NDArray[np.float64]:
    """The same from pixels on the CPU in float32, with some modules of the run's last checkpoint
    and the others as they were at its start."""
    config = replace(config, backbone=replace(config.backbone, precision="float32"))
    prepared = prepare(config)
    with Display() as display:
        spec, folder = run_features(config, prepared, False, display)
    job = training_job(config, prepared, spec, folder, run)
    model = build_model(job).eval()
    checkpoint = run / finished_stages(str(run))["training"]["checkpoint"]
    for name in modules:
        load_module(checkpoint, name, model.get_submodule(name))
    encoder = Encoder(job, model.head, None, model.backbone)
    return own_embeddings(prepared, embed_units(encoder, units_of(prepared.manifest, SPLITS)))


def distance(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def correlation(some: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    return float(np.corrcoef(some.ravel(), others.ravel())[0, 1])


@on_either
@pytest.mark.parametrize("part", ["none", "all"])
def test_a_run_learns_embeds_every_class_with_what_it_learned_and_can_be_repeated(
    root: Path, part: Part, device: Device
) -> None:
    config = config_of(root, part, device, "runs")
    run = train(config, f"{device}-{part}")
    losses = losses_of(run)
    assert losses[0] - losses[-1] > LEAST_FALL, losses
    own = embeddings_of(run)
    assert own.shape == (tiny.NUM_CLASSES, 20)
    assert np.isfinite(own).all(), own
    np.testing.assert_allclose(own.sum(1), 1, atol=1e-3)
    modules = ["head"] if part == "none" else ["head", "backbone"]
    assert distance(own, embedded_anew(config, run, *modules)) < MOST_ROUNDING
    assert distance(own, embedded_anew(config, run, *modules[:-1])) > 2 * MOST_ROUNDING
    again = train(replace(config, storage=str(root / "again")), f"{device}-{part}")
    rows, other = read_metrics(run), read_metrics(again)
    assert abs(rows[-1]["nmi"] - other[-1]["nmi"]) < MOST_APART, (rows, other)
    repeated = embeddings_of(again)
    assert correlation(own, repeated) > LEAST_CORRELATION, (losses, losses_of(again))
    assert correlation(own, np.roll(repeated, 1, 0)) < LEAST_CORRELATION - 0.2  # of other classes


@on_either
def test_from_pictures_under_any_class_it_learns_less(
    tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = tiny.draw_tree

    def draw_shuffled(root: Path, *counts: int) -> None:
        draw(root, *counts)
        files = sorted((root / "train").glob("*/*.png"))
        contents = [file.read_bytes() for file in files]
        random.Random(0).shuffle(contents)
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)

    monkeypatch.setattr(tiny, "draw_tree", draw_shuffled)
    tiny.make_tiny(tmp_path)
    losses = losses_of(train(config_of(tmp_path, "none", device, "runs"), "shuffled"))
    assert 0 < losses[0] - losses[-1] < LEAST_FALL, losses


@on_either
def test_features_of_a_gpu_are_those_of_the_cpu(root: Path, tmp_path: Path, device: Device) -> None:
    manifest = load_manifest(str(root / "packed"))
    spec = feature_spec(BackboneConfig(), "float32")
    units = units_of(manifest, SPLITS)
    calls = ((manifest.url, unit, spec, str(tmp_path / "found"), device) for unit in units)
    gpus = 1 if device == "cuda" else 0
    results = list(actor_results(compute_unit, calls, 1, cpus=1, threads=3, gpus=gpus))
    assert len(results) == len(units)
    for unit in units:
        compute_unit(manifest.url, unit, spec, str(tmp_path / "cpu"), "cpu")
        found, expected = (load_file(tmp_path / d / unit.file) for d in ("found", "cpu"))
        for name in ("images", "patches"):
            gpu, cpu = found[name].float(), expected[name].float()
            gaps = [float((gpu - other).norm() / cpu.norm()) for other in (cpu, cpu.roll(1, 0))]
            assert gaps[0] < 0.01 < 0.1 < gaps[1], (unit, name, gaps)  # cuDNN multiplies in TF32
