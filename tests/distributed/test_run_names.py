"""The name of a run or a search is one folder's name."""

import pytest

from distributed.run import train
from tune.config import SearchConfig, search_folder
from vgse.config import RunConfig, check_name, default_name


@pytest.mark.parametrize("name", [".", "..", "a/b", "../x", "", ".hidden"])
def test_other_names_are_refused_before_anything_is_read_or_written(name: str) -> None:
    with pytest.raises(ValueError, match=r"--run-id .*: letters, digits"):
        train(RunConfig(), name)
    with pytest.raises(ValueError, match=r"--search-id .*: letters, digits"):
        search_folder(SearchConfig(), name)


def test_a_name_that_no_disk_takes_is_refused() -> None:
    check_name("--run-id", "a" * 100)
    with pytest.raises(ValueError, match="has 101 characters; give 100 at most"):
        check_name("--run-id", "a" * 101)


@pytest.mark.parametrize("file", ["my run [v2].yaml", "größe.yaml", ".yaml", "x" * 300 + ".yml"])
def test_the_name_made_from_any_file_is_one_that_is_taken(file: str) -> None:
    check_name("--run-id", default_name([file], "run"))
