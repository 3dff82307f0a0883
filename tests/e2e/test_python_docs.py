"""docs/python.md, line by line, on the reader's own run."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from readme_commands import README, blocks

PACKAGES = ("vgse", "shards", "distributed")


@pytest.fixture(scope="module")
def lines_of(own_run: Path, reader: Path) -> dict[str, Any]:
    """What the names of the document stand for once all of its blocks have run."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(reader)
        for block in blocks("python", README.parent / "docs" / "python.md"):
            exec(block, names)
    return names


def test_a_run_is_loaded_with_its_shapes(lines_of: dict[str, Any]) -> None:
    seen, unseen = len(lines_of["seen"]), len(lines_of["unseen"])
    assert (seen, unseen) == (10, 4)
    assert lines_of["embeddings"].shape == lines_of["own"].shape == (14, 20)
    assert lines_of["r"].shape == (unseen, seen)
    assert {"words", "smo", "oracle"} <= set(lines_of["accuracy"])


def test_a_relation_of_ones_own_predicts_unseen_classes(lines_of: dict[str, Any]) -> None:
    own = lines_of["relation"].relations.weights @ lines_of["own"][lines_of["seen"]]
    assert lines_of["predicted"] == pytest.approx(own)
    assert lines_of["predicted"].shape == (4, 20)


def test_given_embeddings_are_evaluated_beside_words(lines_of: dict[str, Any]) -> None:
    assert [row["name"] for row in lines_of["scored"]["rows"]] == ["random", "words", "given"]


def test_patches_come_in_batches(lines_of: dict[str, Any]) -> None:
    assert lines_of["patches"].shape[1:] == (4, 64, 64, 3)


def test_a_training_from_python_makes_a_report(lines_of: dict[str, Any]) -> None:
    assert (lines_of["folder"] / "report.html").is_file()
    assert "smo" in [row["name"] for row in lines_of["table"]]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert all(getattr(module, name).__doc__ for name in module.__all__)
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


def test_a_dozen_names_are_public_in_all() -> None:
    assert sum(len(sys.modules[package].__all__) for package in PACKAGES) <= 14
