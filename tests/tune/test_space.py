"""What a search may vary, and what it refuses before a cluster is started."""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import yaml

from distributed.setup import Prepared, prepare
from tune.__main__ import main, make_parser, with_stored_config
from tune.config import SearchConfig, check_folder, check_search, to_dict, write_yaml
from tune.space import (
    Dimension,
    check_space,
    check_space_fits,
    default_space,
    draw_params,
    with_params,
)
from tune.trial.context import trial_base
from tune_tiny import make_search, make_tiny
from vgse.config import RunConfig

RUN = RunConfig()


def refusal(name: str, dimension: Dimension) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the tests look at the text
        check_space(RUN, {name: dimension})
    text = str(caught.value)
    assert text.startswith(f"space.{name}: ") and "\n" not in text
    return text


def test_the_default_space_is_valid_and_covers_what_the_issue_names() -> None:
    space = default_space()
    check_space(RUN, space)
    assert {
        "loss.classification", "loss.semantic", "loss.consistency", "loss.entropy",
        "model.num_clusters", "model.temperature", "training.learning_rate", "relations.alpha",
    } == set(space)  # fmt: skip
    assert space["loss.consistency"].log and (space["loss.consistency"].low or 1) <= 0.01
    params = draw_params(optuna.create_study().ask(), RUN, space)
    assert list(params) == sorted(space)
    assert all(space[name].holds(value) for name, value in params.items())


@pytest.mark.parametrize(
    ("name", "dimension", "told"),
    [
        ("loss.entropi", Dimension(0.1, 1), "did you mean loss.entropy?"),
        ("nonsense", Dimension(0.1, 1), "no such field"),
        ("loss", Dimension(0.1, 1), "no such field"),
        ("data.shards", Dimension(choices=["a", "b"]), "one feature cache serves all trials"),
        ("backbone.patch_size", Dimension(32, 64), "one feature cache"),
        ("training.epochs", Dimension(1, 3), "ASHA decides"),
        ("training.classes", Dimension(choices=["seen"]), "validation classes stay out"),
        ("loss.entropy", Dimension(2, 1), "low must be the smaller"),
        ("loss.entropy", Dimension(0, 1, log=True), "more than 0"),
        ("loss.entropy", Dimension(0.1), "give low and high, or choices"),
        ("loss.entropy", Dimension(0.1, float("inf")), "low must be the smaller"),
        ("loss.entropy", Dimension(0.1, 1, choices=[0.5]), "keep one of them"),
        ("loss.entropy", Dimension(choices=[]), "choices are empty"),
        ("loss.entropy", Dimension(choices=[0.1, 0.1]), "a value twice"),
        ("loss.entropy", Dimension(choices=["high"]), "'high' is no float"),
        ("loss.entropy", Dimension(-1, 1), "loss.entropy is -1"),
        ("model.num_clusters", Dimension(1.5, 8), "whole numbers"),
        ("model.num_clusters", Dimension(choices=[0, 10]), "model.num_clusters is 0"),
        ("model.num_clusters", Dimension(choices=[10, True]), "True is no int"),
        ("model.init", Dimension(0, 1), "is not a number"),
        ("relations.alpha", Dimension(-2, 0), "relations.alpha is -2"),
        ("relations.ridge", Dimension(choices=["best", 0.1]), "takes float or auto"),
        ("relations.ridge", Dimension(0, 1), "relations.ridge is 0"),
    ],
)
def test_a_space_that_no_run_can_have_is_refused_in_one_line(
    name: str, dimension: Dimension, told: str
) -> None:
    assert told in refusal(name, dimension)


def test_whole_numbers_stay_whole_and_choices_keep_their_type() -> None:
    space = {
        "model.num_clusters": Dimension(10, 90, log=True),
        "model.init": Dimension(choices=["kmeans", "random"]),
        "model.train_projection": Dimension(choices=[True, False]),
    }
    check_space(RUN, space)
    params = draw_params(optuna.create_study().ask(), RUN, space)
    assert [type(params[name]) for name in sorted(space)] == [str, int, bool]
    changed = with_params(RUN, {"model.num_clusters": 11, "model.train_projection": False})
    assert (changed.model.num_clusters, changed.model.train_projection) == (11, False)
    assert RUN.model.num_clusters == 150 and RUN.model.train_projection


@pytest.mark.parametrize(
    ("spec", "values"),
    [("{choices: [1e-8, 0.1, auto]}", {1e-8, 0.1, "auto"}), ("{low: 0.01, high: 1}", None)],
)
def test_the_ridge_is_searched_over_numbers_and_auto(
    spec: str, values: set[float | str] | None
) -> None:
    given = ["search", "--space", f"{{relations.ridge: {spec}}}"]
    space = make_parser().instantiate(make_parser().parse_args(given)).search.space
    check_space(RUN, space)
    drawn = draw_params(optuna.create_study().ask(), RUN, space)["relations.ridge"]
    assert drawn in values if values else 0.01 <= drawn <= 1
    assert space["relations.ridge"].holds("auto") == bool(values)
    assert with_params(RUN, {"relations.ridge": drawn}).relations.ridge == drawn


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("space")
    make_tiny(root, train=6, test=2)
    return root


@pytest.fixture(scope="module")
def prepared(root: Path) -> Prepared:
    return prepare(trial_base(make_search(root)))


@pytest.mark.parametrize(
    ("name", "dimension", "told"),
    [
        (
            "model.num_clusters",
            Dimension(choices=[12, 200]),
            "num_clusters is 200, but .* 192 patches",
        ),
        ("model.projection", Dimension(16, 2000), "gives 1280 features"),
        ("relations.alpha", Dimension(0, 0.5), "cannot sum to 1"),
    ],
)
def test_a_space_that_the_data_has_no_room_for_is_refused(
    root: Path, prepared: Prepared, name: str, dimension: Dimension, told: str
) -> None:
    config = make_search(root)
    check_space_fits(trial_base(config), config.space, prepared)
    with pytest.raises(ValueError, match=told):
        check_space_fits(trial_base(config), {name: dimension}, prepared)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"grace_epochs": 9}, "grace_epochs is 9, but a trial has 3 epochs"),
        ({"models": ["resnet"]}, "zero-shot model 'resnet' is unknown"),
        ({"models": []}, "models is empty"),
        ({"space": {}}, "space is empty"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    root: Path, changes: dict[str, object], told: str
) -> None:
    check_search(make_search(root))
    with pytest.raises(ValueError, match=told):
        check_search(make_search(root, **changes))


def test_a_search_folder_in_a_store_is_refused(root: Path) -> None:
    config = make_search(root)
    config.run.storage = "s3://bucket/runs"
    with pytest.raises(ValueError, match=r"run\.storage is s3://bucket/runs"):
        check_search(config)


def test_the_shipped_configuration_is_read_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    parser = make_parser()
    given = ["search", "--config", "configs/search-demo.yaml", "--run.seed", "3"]
    options = parser.instantiate(parser.parse_args(given)).search
    assert options.run.training.batch_size == 64  # of demo.yaml
    assert options.run.seed == 3 and options.trials == 64
    assert options.space["loss.entropy"].log
    check_search(SearchConfig(run=options.run, space=options.space))


def test_a_mistake_is_one_line_and_exit_status_2(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = ["--run.data.shards", str(root / "packed")]
    space = ["--space", "{loss.entropi: {low: 0.1, high: 1}}"]
    assert main(["search", *shards, *space]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: space.loss.entropi: ") and told.count("\n") == 1


def test_a_search_that_is_there_is_only_resumed_with_its_own_configuration(
    root: Path, tmp_path: Path
) -> None:
    config, folder = make_search(root), tmp_path / "a"
    with pytest.raises(ValueError, match="there is no search to resume"):
        check_folder(folder, config, resume=True)
    check_folder(folder, config, resume=False)
    folder.mkdir()
    write_yaml(folder / "search.yaml", to_dict(config))
    with pytest.raises(ValueError, match="add --resume"):
        check_folder(folder, config, resume=False)
    more = replace(config, trials=9, finalists=2)
    check_folder(folder, more, resume=True)
    write_yaml(folder / "search.yaml", to_dict(more))
    assert yaml.safe_load((folder / "search.yaml").read_text())["trials"] == 9
    older = to_dict(config)
    del older["run"]["training"]["optimizer"]  # as before there was the field
    (folder / "search.yaml").write_text(yaml.safe_dump(older))
    check_folder(folder, config, resume=True)
    config.run.training.optimizer = "sgd"
    with pytest.raises(ValueError, match=r"run\.training\.optimizer was another"):
        check_folder(folder, config, resume=True)
    config.run.training.optimizer = "adamw"
    other = replace(config, objective="harmonic_mean")
    with pytest.raises(ValueError, match="objective was another"):
        check_folder(folder, other, resume=True)


def test_resuming_without_a_configuration_takes_that_of_the_search(
    root: Path, tmp_path: Path
) -> None:
    config = make_search(root, trials=7)
    config.run.storage = str(tmp_path)
    (tmp_path / "mine").mkdir()
    write_yaml(tmp_path / "mine" / "search.yaml", to_dict(config))
    given = ["search", "--search-id=mine", "--run.storage", str(tmp_path), "--resume"]
    completed = with_stored_config(given)
    options = make_parser().parse_args(completed).search
    assert options.trials == 7 and options.space["loss.entropy"].high == 2
    assert options.run.relations.ridge == "auto"
    assert with_stored_config([*given, "--config", "x.yaml"]) == [*given, "--config", "x.yaml"]


def test_a_search_from_before_the_ridge_was_chosen_goes_on_with_its_own(
    root: Path, tmp_path: Path
) -> None:
    config = make_search(root)
    config.run.storage, config.run.relations.ridge = str(tmp_path), 1e-8
    folder = tmp_path / "mine"
    folder.mkdir()
    stored = to_dict(config)
    del stored["run"]["knowledge"]  # as before there was the field
    (folder / "search.yaml").write_text(yaml.safe_dump(stored))
    given = ["search", "--search-id=mine", "--run.storage", str(tmp_path), "--resume"]
    parser = make_parser()
    options = parser.instantiate(parser.parse_args(with_stored_config(given))).search
    resumed = replace(config, run=options.run)
    assert resumed.run.relations.ridge == 1e-8
    check_folder(folder, resumed, resume=True)
    resumed.run.relations.ridge = "auto"
    with pytest.raises(ValueError, match=r"run\.relations\.ridge was another when"):
        check_folder(folder, resumed, resume=True)
