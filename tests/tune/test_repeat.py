"""What a repeat does before a cluster starts: which runs, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tune.__main__ import main
from tune.config import check_unchanged
from tune.repeat import repeat, repetitions
from vgse.config import RunConfig, to_dict
from vgse.errors import UserError


def test_splits_begin_at_the_configured_seed_and_nothing_else_differs() -> None:
    config = RunConfig()
    runs = repetitions(config, 3, 0)
    assert list(runs) == ["split-0", "split-1", "split-2"]
    config.data.split_seed = 5
    runs = repetitions(config, 2, 0)
    assert list(runs) == ["split-5", "split-6"]
    assert runs["split-5"] == config
    assert replace(runs["split-6"], data=config.data) == config


def test_seeds_begin_at_the_configured_one_and_the_classes_stay() -> None:
    config = RunConfig(seed=7)
    config.data.unseen = ["apple"]
    runs = repetitions(config, 0, 2)
    assert [run.seed for run in runs.values()] == [7, 8]
    assert all(run.data == config.data for run in runs.values())


@pytest.mark.parametrize(
    ("splits", "seeds", "unseen", "problem"),
    [
        (0, 0, None, "give --splits N or --seeds N"),
        (2, 2, None, "give --splits N or --seeds N"),
        (1, 0, None, "at least 2"),
        (2, 0, ["apple"], "--splits draws them"),
    ],
)
def test_what_cannot_be_repeated_is_refused(
    splits: int, seeds: int, unseen: list[str] | None, problem: str
) -> None:
    config = RunConfig()
    config.data.unseen = unseen
    with pytest.raises(UserError, match=problem):
        repetitions(config, splits, seeds)


def test_a_folder_at_a_url_is_refused() -> None:
    with pytest.raises(UserError, match="must lie on a disk that all nodes share"):
        repeat(RunConfig(storage="s3://bucket/runs"), "mine", splits=2)


def check(path: Path, config: RunConfig, splits: int, *, resume: bool) -> None:
    content = to_dict(config) | {"splits": splits}
    changeable = ("splits", "cluster.")
    check_unchanged(
        *(path, content, to_dict(RunConfig()), changeable),
        resume=resume,
        what="repeat",
        option="--repeat-id",
    )


def test_a_resume_takes_more_splits_but_no_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "repeat.yaml"
    config = RunConfig()
    with pytest.raises(UserError, match="there is no repeat to resume"):
        check(path, config, 2, resume=True)
    path.write_text(yaml.safe_dump(to_dict(config) | {"splits": 2}))
    with pytest.raises(UserError, match="this repeat is there already; add --resume"):
        check(path, config, 2, resume=False)
    check(path, config, 5, resume=True)
    config.data.split_seed = 3
    with pytest.raises(UserError, match=r"data.split_seed was another when this repeat began"):
        check(path, config, 5, resume=True)


def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repeat", "--splits", "1", "--storage", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: give --splits N or --seeds N") and error.count("\n") == 1
