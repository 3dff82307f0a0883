"""Data and a search that several test files share."""

import shutil
from pathlib import Path

import pytest

from tune.search import search
from tune_tiny import broken_search, make_tiny, spoil_test_shards


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set."""
    root = tmp_path_factory.mktemp("tune")
    make_tiny(root, train=12, test=4)
    return root


@pytest.fixture(scope="session")
def blind(ray_session: None, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search over data whose test shards cannot be read, one of whose trials cannot be
    trained."""
    blind = tmp_path_factory.mktemp("blind")
    shutil.copytree(root / "packed", blind / "packed", ignore=shutil.ignore_patterns("features"))
    shutil.copy(root / "words.txt", blind)
    spoil_test_shards(blind / "packed")
    return search(broken_search(blind, trials=5), "blind")
