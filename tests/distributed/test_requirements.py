"""What late stages need, found before a cluster starts: a change a kind, each with its one line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distributed import requirements
from distributed.requirements import check_disk, check_requirements, class_counts
from distributed.setup import Prepared, prepare
from distributed.train import loggers
from distributed.train.loggers import check_tracking
from tiny import NAMES, UNSEEN, make_tiny
from tune.config import SearchConfig
from tune.trial.objective import check_objective
from vgse.config import DataConfig, ModelConfig, RunConfig, TrackingConfig
from vgse.errors import UserError

Change = Callable[[Prepared], Prepared]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    root = tmp_path_factory.mktemp("tiny")
    make_tiny(root, train=4, test=2)
    return RunConfig(
        data=DataConfig(shards=str(root / "packed"), words=str(root / "words.txt")),
        model=ModelConfig(num_clusters=20, projection=32),
    )


@pytest.fixture(scope="module")
def prepared(config: RunConfig) -> Prepared:
    return prepare(config)


def images(split: str, **counts: int) -> Change:
    """Other counts of some classes, or of `all`."""

    def change(prepared: Prepared) -> Prepared:
        own = prepared.manifest.class_counts
        of_all = dict.fromkeys(own[split], counts["all"]) if "all" in counts else counts
        return replace(
            prepared,
            manifest=replace(prepared.manifest, class_counts=own | {split: own[split] | of_all}),
        )

    return change


def roles(**classes: list[int]) -> Change:
    arrays: dict[str, Any] = {name: np.array(labels, int) for name, labels in classes.items()}
    return lambda prepared: replace(prepared, **arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (roles(seen=[3], val=[]), "1 seen classes with word vectors, at least 2"),
        (roles(unseen=[]), "0 unseen classes"),
        (roles(val=[]), "0 validation classes"),
        (roles(val=list(range(9))), "fewer than 2 seen classes outside"),
        (images("test_seen", all=0), "no test images of seen classes .*--test_fraction"),
        (images("train", all=1), "training image"),
        (images("test_unseen", all=0), "test_unseen holds no image"),
        (images("train", texturea=0), "seen classes without a training image: texturea"),
    ],
)
def test_a_set_that_a_late_stage_would_stop_at_is_refused(
    config: RunConfig, prepared: Prepared, change: Change, message: str
) -> None:
    check_requirements(config, prepared)
    with pytest.raises(UserError, match=message) as caught:
        check_requirements(config, change(prepared))
    assert "\n" not in str(caught.value) and prepared.manifest.url in str(caught.value)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("evaluation", "models", ["eszsl", "szsl"], "evaluation.models: .*'szsl' is unknown"),
        ("evaluation", "models", [], "evaluation.models is empty"),
        ("cluster", "num_workers", 41, "40 training images for 41 workers"),
        ("model", "num_clusters", 161, "num_clusters is 161, but .* 160 patches"),
        ("model", "projection", 100, "only 80 patches start the clusters"),
        ("relations", "alpha", 0.2, "alpha is 0.2, but 10 weights .* 0.1 or less"),
    ],
)
def test_a_setting_that_a_late_stage_would_stop_at_is_refused(
    config: RunConfig, prepared: Prepared, section: str, field: str, value: object, message: str
) -> None:
    model = replace(config.model, max_points_per_centroid=4)
    config = replace(config, model=model)
    check_requirements(config, prepared)
    changed = replace(getattr(config, section), **{field: value})
    with pytest.raises(UserError, match=message) as caught:
        check_requirements(replace(config, **{section: changed}), prepared)
    assert "\n" not in str(caught.value)


def test_only_classes_that_are_trained_on_count_as_training_images(
    config: RunConfig, prepared: Prepared
) -> None:
    few = replace(prepared, trained=prepared.trained[:2])
    with pytest.raises(UserError, match="8 training images for 9 workers"):
        check_requirements(replace(config, cluster=replace(config.cluster, num_workers=9)), few)


def test_embeddings_that_no_mat_file_holds_are_refused(
    config: RunConfig, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "MAX_BYTES", 14 * 19 * 8)
    with pytest.raises(UserError, match=r"num_clusters is 20: .* 2 GB of a .mat .* lower it to 19"):
        check_requirements(config, prepared)


def test_a_compiler_is_asked_for_only_where_something_is_compiled(
    config: RunConfig, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements.shutil, "which", lambda name: None)
    backbone = replace(config.backbone, compile=True)
    check_requirements(replace(config, backbone=backbone), prepared)
    with pytest.raises(UserError, match="no C\\+\\+ compiler; install"):
        check_requirements(replace(config, backbone=replace(backbone, train="last")), prepared)


def test_a_cache_that_cannot_be_made_is_named(
    config: RunConfig, prepared: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    at_file = replace(prepared, cache=str(tmp_path / "file" / "features"))
    with pytest.raises(UserError, match=r"file is not a folder that can be written; set"):
        check_requirements(config, at_file)
    check_requirements(config, replace(prepared, cache=str(tmp_path / "new" / "features")))


def test_features_that_the_disk_has_no_room_for_are_refused_before_any_work(
    config: RunConfig, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = replace(prepared, cache=str(tmp_path / "cache"))
    count = sum(int(class_counts(prepared.manifest, s).sum()) for s in ("train", "test_seen"))
    count += int(class_counts(prepared.manifest, "test_unseen").sum())
    features, embedded = count * 5 * 1280 * 2, count * (2 * 4 * 20 + 8 * 4)

    def free(amount: int) -> None:
        usage = SimpleNamespace(free=amount)
        monkeypatch.setattr(requirements.shutil, "disk_usage", lambda path: usage)

    free(features + embedded)
    check_disk(config, prepared, str(tmp_path / "run"))
    free(features + embedded - 1)
    with pytest.raises(UserError, match=r"GB are needed .* free some, or choose another storage"):
        check_disk(config, prepared, str(tmp_path / "run"))
    there = tmp_path / "cache" / "efficientnet-lite0-1234"
    there.mkdir(parents=True)
    (there / "unit.safetensors").write_bytes(b"x")
    check_disk(config, prepared, str(tmp_path / "run"))
    check_disk(config, replace(prepared, cache="s3://bucket/cache"), "s3://bucket/run")


def test_a_tracker_that_could_write_nothing_is_refused(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: object())
    check_tracking(TrackingConfig(mlflow=f"sqlite:///{tmp_path}/mlflow.db"))
    check_tracking(TrackingConfig(mlflow="sqlite:///mlflow.db"))
    with pytest.raises(UserError, match=r"mlflow is .*, but .*/none is no folder to write to"):
        check_tracking(TrackingConfig(mlflow=f"sqlite:///{tmp_path}/none/mlflow.db"))
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    check_tracking(TrackingConfig(tensorboard=False))
    with pytest.raises(UserError, match="TensorBoard is not installed"):
        prepare(config)


@pytest.mark.parametrize("seed", [-1, 2**31 - 1, 1.0, True])
def test_a_seed_that_some_library_does_not_take_is_refused(config: RunConfig, seed: Any) -> None:
    with pytest.raises(UserError, match=r"seed is .*; (it must be in 0|give a whole number)"):
        prepare(replace(config, seed=seed))


def test_a_search_needs_two_validation_classes_and_images_to_hold_out(
    config: RunConfig, prepared: Prepared
) -> None:
    search = SearchConfig(run=config)
    trained = np.setdiff1d(prepared.seen, prepared.val)
    prepared = replace(prepared, trained=trained)
    check_objective(search, prepared)
    one = replace(prepared, val=prepared.val[:1])
    with pytest.raises(UserError, match="1 validation class, among which every trial is right"):
        check_objective(search, one)
    check_objective(replace(search, objective="harmonic_mean"), one)
    with pytest.raises(UserError, match="3 training classes besides 2 validation classes"):
        check_objective(search, replace(prepared, trained=trained[:3]))
    with pytest.raises(UserError, match="every seen class has one training image"):
        check_objective(search, images("train", all=1)(prepared))


def test_the_tiny_set_is_what_these_tests_take_it_for(prepared: Prepared) -> None:
    assert (len(prepared.seen), len(prepared.val)) == (len(NAMES) - len(UNSEEN), 2)
    assert class_counts(prepared.manifest, "train")[prepared.seen].tolist() == [4] * 10
    assert prepared.manifest.num_patches == 4
