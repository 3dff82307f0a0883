"""SGD beside AdamW: its kernels, its checkpoints, and that it learns."""

import copy
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gloo_workers
from distributed.features.cache import cache_folder, feature_spec, units_of
from distributed.features.extract import compute_unit
from distributed.features.kmeans_init import make_start
from distributed.setup import prepare
from distributed.train.checkpoint import damage
from distributed.train.trainer import TrainingJob, train_alone
from tiny import make_tiny
from vgse.config import DataConfig, ModelConfig, RunConfig, TrainingConfig, validate
from vgse.training.optimizer import make_optimizer, match_layout
from vgse.training.step import run_step

EPOCHS = 4
SGD = TrainingConfig(
    optimizer="sgd",
    epochs=EPOCHS,
    batch_size=60,
    learning_rate=0.3,
    regressor_learning_rate=3.0,
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """What a run of the tiny set trains by SGD, started from k-means."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("sgd")
    make_tiny(root, test=2)
    config = RunConfig(
        data=DataConfig(shards=str(root / "packed"), words=str(root / "words.txt")),
        model=ModelConfig(num_clusters=16, projection=64),
        training=SGD,
    )
    prepared = prepare(config)
    spec = feature_spec(config.backbone, "float32")
    folder = cache_folder(str(root / "cache"), prepared.manifest, spec)
    units = units_of(prepared.manifest, ["train"])
    for unit in units:
        compute_unit(prepared.manifest.url, unit, spec, folder, "cpu")
    trained = prepared.trained.tolist()
    make_start(
        folder,
        units,
        trained,
        config,
        num_patches=prepared.manifest.num_patches,
        below=2**64 - 1,
        init=root / "run" / "init",
    )
    return TrainingJob(
        config=config,
        run=str(root / "run"),
        url=prepared.manifest.url,
        spec=spec,
        folder=folder,
        classes=trained,
        num_classes=len(prepared.manifest.class_names),
        targets=prepared.word_vectors[trained].astype(np.float32),
        num_features=prepared.num_features,
        fingerprint=prepared.fingerprint,
    )


def with_training(job: TrainingJob, **fields: object) -> TrainingJob:
    training = replace(job.config.training, **fields)  # type: ignore[arg-type]
    return replace(job, config=replace(job.config, training=training))


def steps(config: TrainingConfig, *, fused: bool, stopped: bool = False) -> list[torch.Tensor]:
    """The parameters of a network from pixels after three steps.

    `stopped` takes the optimiser's state through a checkpoint's form after the first.
    """
    model = gloo_workers.build_with_backbone()
    optimizer = make_optimizer(model, config)
    for group in optimizer.param_groups:
        group["fused"] = fused
        group["foreach"] = False
    for number in range(3):
        if stopped and number == 1:
            saved = copy.deepcopy(optimizer.state_dict())
            for state in saved["state"].values():
                state.update({name: value.contiguous() for name, value in state.items()})
            optimizer.load_state_dict(saved)
            match_layout(optimizer)
        optimizer.zero_grad()
        run_step(model, model, gloo_workers.pixels_of(number, None))
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("stopped", [False, True])
def test_one_kernel_for_all_parameters_steps_as_one_for_each(name: str, stopped: bool) -> None:
    rates = {"learning_rate": 0.02, "regressor_learning_rate": 0.05, "weight_decay": 0.01}
    config = TrainingConfig(optimizer=name, **rates)  # type: ignore[arg-type]
    plain, fused = steps(config, fused=False), steps(config, fused=True, stopped=stopped)
    start = [p.detach().clone() for p in gloo_workers.build_with_backbone().parameters()]
    moved = [float((a - b).abs().max()) for a, b in zip(plain, start, strict=True)]
    assert max(moved) > 1e-2
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


def test_a_step_is_that_of_the_equation_at_each_groups_rate() -> None:
    """v = 0.9 v + g + 0.01 p, then p = p - rate v."""
    model = gloo_workers.build_with_backbone()
    config = TrainingConfig(
        optimizer="sgd",
        learning_rate=0.1,
        regressor_learning_rate=0.2,
        backbone_learning_rate=0.3,
        weight_decay=0.01,
    )
    optimizer = make_optimizer(model, config)
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    rates = [group["peak"] for group in optimizer.param_groups for _ in group["params"]]
    assert sorted(set(rates)) == [0.1, 0.2, 0.3]
    expected = [parameter.detach().double().clone() for parameter in learning]
    speeds = [torch.zeros_like(parameter) for parameter in expected]
    for number in range(3):
        optimizer.zero_grad()
        run_step(model, model, gloo_workers.pixels_of(number, None))
        for place, (parameter, rate) in enumerate(zip(learning, rates, strict=True)):
            assert parameter.grad is not None
            pull = parameter.grad.double() + 0.01 * expected[place]
            speeds[place] = 0.9 * speeds[place] + pull
            expected[place] = expected[place] - rate * speeds[place]
        optimizer.step()
        for parameter, wanted in zip(learning, expected, strict=True):
            torch.testing.assert_close(parameter.double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(
    job: TrainingJob, momentum: float, tmp_path: Path
) -> None:
    job = with_training(job, momentum=momentum)
    rows: list[float] = []

    def keep_the_second(row: dict[str, float], folder: Path | None) -> None:
        rows.append(row["loss"])
        if row["epoch"] == 2:
            assert folder is not None
            shutil.copytree(folder, tmp_path / "kept")

    whole = train_alone(job, on_epoch=keep_the_second)
    assert damage(str(tmp_path / "kept")) is None
    again: list[float] = []
    resumed = train_alone(
        job, checkpoint=tmp_path / "kept", on_epoch=lambda row, _: again.append(row["loss"])
    )
    assert again == pytest.approx(rows[2:], rel=1e-6)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)
    assert rows[-1] < 0.9 * rows[0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer", "sdg", "training.optimizer is 'sdg'; it must be one of adamw, sgd"),
        ("momentum", 1.0, "training.momentum is 1.0; it must be in 0..0.999"),
    ],
)
def test_what_cannot_be_is_one_line_before_any_work(
    field: str, value: object, message: str
) -> None:
    config = RunConfig()
    setattr(config.training, field, value)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        validate(config)


def test_a_run_goes_on_under_the_same_optimizer_only(job: TrainingJob) -> None:
    def fingerprint(**fields: object) -> str:
        return prepare(with_training(job, **fields).config).fingerprint

    assert fingerprint(optimizer="sgd") == job.fingerprint
    assert fingerprint(optimizer="adamw") != job.fingerprint
    assert fingerprint(momentum=0.5) != job.fingerprint
    # AdamW has no use for it.
    assert fingerprint(optimizer="adamw", momentum=0.5) == fingerprint(optimizer="adamw")
