"""Every command of the README, run on a tiny set that stands where the reader's own would."""

from itertools import pairwise
from pathlib import Path

import pytest

from readme_commands import README, block_with, blocks, commands_of, run_command

SMALLER = {
    "--trials": "2",
    "--splits": "2",
    "--model.num_clusters": "30",
    "--cluster.num_workers": "2",
}  # the reader's own set is as small


def all_commands() -> list[str]:
    return [line for block in blocks("bash") for line in commands_of(block)]


def smaller(line: str) -> str:
    words = line.replace("NAME", "mine").split()
    for before, word in pairwise(words):
        if before in SMALLER:
            words[words.index(word)] = SMALLER[before]
    return " ".join(words)


def test_the_make_commands_are_targets_of_the_makefile() -> None:
    makefile = (README.parent / "Makefile").read_text()
    targets = [line.split()[1] for line in all_commands() if line.startswith("make ")]
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_commands_for_own_images_make_a_report(own_run: Path) -> None:
    assert (own_run / "report.html").is_file()


def test_all_other_python_commands_run(
    own_run: Path, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader)
    ran = []
    for line in all_commands():
        if line.startswith("python -m ") and line not in block_with("shards pack"):
            assert run_command(smaller(line)) == 0, line
            ran.append(line.split()[2])
    assert ran.count("distributed") >= 2
    assert ran.count("vgse") == 4
    assert ran.count("tune") == 3
    assert (reader / "runs" / "mine-search" / "search.html").is_file()
    assert (reader / "runs" / "mine-splits" / "repeat.html").is_file()


def test_the_python_snippets_read_a_run(
    own_run: Path, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block.replace("NAME", "mine"), names)
    assert names["attributes"].shape == (14, 20)  # type: ignore[attr-defined]
    assert len(names["embedding"]) == 14  # type: ignore[arg-type]
    assert len(names["boxes"]) == 4  # type: ignore[arg-type]
    assert len(names["unseen"]) == 40  # type: ignore[arg-type]
