"""The name of a run or a search is one folder's name."""

import pytest

from distributed.run import train
from tune.config import SearchConfig, search_folder
from vgse.config import RunConfig


@pytest.mark.parametrize("name", [".", "..", "a/b", "../x", "", ".hidden"])
def test_other_names_are_refused_before_anything_is_read_or_written(name: str) -> None:
    with pytest.raises(ValueError, match=r"--run-id .*: letters, digits"):
        train(RunConfig(), name)
    with pytest.raises(ValueError, match=r"--search-id .*: letters, digits"):
        search_folder(SearchConfig(), name)
