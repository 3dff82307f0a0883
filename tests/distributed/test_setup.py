"""What is found wrong before any cluster is started, each with its one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed.__main__ import main
from distributed.run import check_run_folder, write_config
from distributed.setup import prepare, record_roles
from tiny import make_tiny
from vgse.config import DataConfig, ModelConfig, RunConfig, SourceConfig
from vgse.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_tiny(root)
    return root


@pytest.fixture
def config(root: Path) -> RunConfig:
    return RunConfig(
        data=DataConfig(shards=str(root / "packed"), words=str(root / "words.txt")),
        model=ModelConfig(num_clusters=20, projection=64),
    )


def test_a_sound_configuration_passes(config: RunConfig) -> None:
    prepared = prepare(config)
    assert (len(prepared.seen), len(prepared.unseen)) == (10, 4)
    assert prepared.trained.tolist() == prepared.seen.tolist()


def test_roles_given_at_run_time_are_recorded_and_others_refused(
    config: RunConfig, tmp_path: Path
) -> None:
    config.data.split_seed = 3
    prepared = prepare(config)
    recorded = record_roles(config, prepared)
    names = [prepared.manifest.class_names[label] for label in prepared.unseen]
    assert recorded.data.unseen == names and len(names) == 4
    assert prepare(recorded).fingerprint == prepared.fingerprint
    run = str(tmp_path / "run")
    check_run_folder(run, recorded, prepared.fingerprint, resume=False)
    write_config(recorded, run)
    config.data.split_seed = 4
    other = prepare(config)
    assert other.cache == prepared.cache
    with pytest.raises(UserError, match=r"made with other roles of classes .*; choose another"):
        check_run_folder(run, record_roles(config, other), other.fingerprint, resume=False)


def set_field(path: str, value: object) -> Callable[[RunConfig], None]:
    section, name = path.split(".")
    return lambda config: setattr(getattr(config, section), name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field("model.num_clusters", 961), r"num_clusters is 961, but .* have 960 patches"),
        (set_field("model.projection", 2000), r"projection is 2000, but .* gives 1280 features"),
        (set_field("model.temperature", 0.0), r"model.temperature is 0.0; it must be in"),
        (set_field("relations.alpha", 0.2), r"alpha is 0.2, but 10 weights .* 0.1 or less"),
        (set_field("cluster.num_workers", 250), r"240 training images for 250 workers"),
        (set_field("backbone.name", "resnet5"), r"backbone.name: unknown model 'resnet5'"),
        (set_field("backbone.weights", "none.pth"), r"backbone.weights: no file none.pth"),
        (set_field("data.words", "none.txt"), r"none.txt: no such file; set data.words"),
        (set_field("tracking.mlflow", "/nowhere"), r"/nowhere, a folder, which .* sqlite:///"),
        (set_field("data.shards", "nowhere"), r"nowhere/manifest.json: no such file"),
    ],
)
def test_bad_fields_get_one_line_with_the_remedy(
    config: RunConfig, change: Callable[[RunConfig], None], message: str
) -> None:
    config.training.batch_size = 256
    change(config)
    with pytest.raises(ValueError, match=message) as caught:
        prepare(config)
    assert "\n" not in str(caught.value)


def test_all_classes_without_words_are_listed_at_once_or_dropped(
    config: RunConfig, root: Path
) -> None:
    lines = (root / "words.txt").read_text().splitlines()
    (root / "fewer.txt").write_text("\n".join(lines[2:]) + "\n")
    config.data.words = str(root / "fewer.txt")
    with pytest.raises(ValueError, match=r"2 of 14 classes: texturea, textureb;"):
        prepare(config)
    config.data.missing_words = "drop"
    prepared = prepare(config)
    assert (len(prepared.seen), len(prepared.unseen)) == (8, 4)


def sources(*configs: SourceConfig) -> Callable[[RunConfig], None]:
    return lambda config: setattr(config, "knowledge", list(configs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sources(SourceConfig("wordnet")), r"knowledge\[0\]: wordnet needs a path"),
        (sources(SourceConfig("wordnet", "nowhere")), r"nowhere.*data.noun"),
        (sources(SourceConfig("words"), SourceConfig("table", "none.npz")), r"none.npz: no such"),
        (sources(SourceConfig("words", weight=-1)), r"knowledge\[0\].weight is -1; it must be at"),
        (set_field("relations.ridge", "best"), r"relations.ridge is 'best'; give a number or auto"),
        (set_field("relations.ridge", 2.0), r"relations.ridge is 2.0; it must be in"),
    ],
)
def test_bad_knowledge_is_found_before_any_cluster(
    config: RunConfig, change: Callable[[RunConfig], None], message: str
) -> None:
    change(config)
    with pytest.raises(UserError, match=message) as caught:
        prepare(config)
    assert "\n" not in str(caught.value)


def test_sources_stand_beside_the_words_and_may_drop_classes(
    config: RunConfig, root: Path, tmp_path: Path
) -> None:
    alone = prepare(config).knowledge
    assert alone.words_alone
    names = alone.class_names
    lines = "\n".join(f"{name}\tkind{i % 3}" for i, name in enumerate(names[1:]))
    (tmp_path / "taxonomy.txt").write_text(lines)
    tree = SourceConfig("hierarchy", str(tmp_path / "taxonomy.txt"))
    config.knowledge = [SourceConfig("words"), tree]
    with pytest.raises(UserError, match=rf"lacks 1 of 14: {names[0]};"):
        prepare(config)
    tree.missing = "zero"
    prepared = prepare(config)
    assert [source.name for source in prepared.knowledge.sources] == ["words", "taxonomy"]
    assert not prepared.knowledge.sources[1].rows[0].any()
    tree.missing = "drop"
    dropped = prepare(config)
    assert 0 not in {*dropped.seen, *dropped.unseen}
    assert dropped.knowledge.class_names == names
    assert not dropped.knowledge.sources[0].rows[0].any()


def test_validation_classes_are_left_out_when_asked(config: RunConfig) -> None:
    config.training.classes = "train"
    prepared = prepare(config)
    assert len(prepared.val) == 2
    assert not set(prepared.val) & set(prepared.trained)


def test_a_class_both_seen_and_unseen_is_refused(
    config: RunConfig, root: Path, tmp_path: Path
) -> None:
    manifest = json.loads((root / "packed" / "manifest.json").read_text())
    unseen = next(entry for entry in manifest["classes"] if entry["role"] == "unseen")
    manifest["classes"].append({**unseen, "role": "train"})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    config.data.shards = str(tmp_path)
    with pytest.raises(ValueError, match=r"is both seen and unseen"):
        prepare(config)


def test_a_missing_shard_is_named(config: RunConfig, root: Path, tmp_path: Path) -> None:
    for file in (root / "packed").iterdir():
        if file.is_file() and file.name != "train-000001.tar":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config.data.shards = str(tmp_path)
    with pytest.raises(ValueError, match=r"train-000001.tar"):
        prepare(config)


def test_a_misspelt_field_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model:\n  num_cluster: 20\n")
    with pytest.raises(SystemExit) as caught:
        main(["train", "--config", str(tmp_path / "run.yaml")])
    assert caught.value.code == 2
    assert "num_cluster" in capsys.readouterr().err


def test_mistakes_end_the_command_with_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", "--data.shards", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def check(run: Path, config: RunConfig, fingerprint: str = "one", resume: bool = False) -> bool:
    finished = check_run_folder(str(run), config, fingerprint, resume=resume)
    write_config(config, str(run))
    return finished


def test_a_run_folder_of_another_configuration_is_refused_with_the_fields_that_differ(
    config: RunConfig, tmp_path: Path
) -> None:
    check(tmp_path / "run", config)
    check(tmp_path / "run", config)
    config.cluster.num_workers = 1  # decides nothing of what is learned
    check(tmp_path / "run", config)
    config.training.epochs, config.seed = 12, 7
    with pytest.raises(ValueError, match="made with another configuration") as caught:
        check(tmp_path / "run", config, "two")
    assert "seed was 0 and is 7; training.epochs was 10 and is 12; choose" in str(caught.value)
    assert "num_workers" not in str(caught.value)


def test_a_run_folder_of_other_data_is_refused(config: RunConfig, tmp_path: Path) -> None:
    check(tmp_path / "run", config)
    with pytest.raises(ValueError, match=r"word vectors or the file of .* have changed; choose"):
        check(tmp_path / "run", config, "two")


def test_a_finished_run_is_refused_with_what_is_there_unless_resumed(
    config: RunConfig, tmp_path: Path
) -> None:
    assert not check(tmp_path, config)
    (tmp_path / "evaluation.json").write_text("{}")
    assert not check(tmp_path, config), "a run that lacks its report is not finished"
    (tmp_path / "report.html").write_text("")
    with pytest.raises(ValueError, match=r"finished \(evaluation.json, report.html are there"):
        check(tmp_path, config)
    assert check(tmp_path, config, resume=True)


def test_the_feature_cache_lies_where_all_nodes_reach_it(config: RunConfig, root: Path) -> None:
    assert prepare(config).cache == str(root / "packed" / "features")
    config.storage = "s3://bucket/runs"
    assert prepare(config).cache == str(root / "packed" / "features")
    config.data.shards = f"local://{root}/packed"  # counts as a store
    assert prepare(config).cache == "s3://bucket/runs/cache"
    config.data.cache = "memory://features"
    assert prepare(config).cache == "memory://features"
