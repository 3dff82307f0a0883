"""Every command of the README, run on a tiny set that stands where the reader's own would."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

import distributed.__main__
import shards.__main__
import tune.__main__
import vgse.__main__
from tiny import make_tiny

README = Path(__file__).resolve().parents[2] / "README.md"
MODULES = {
    "shards": shards.__main__.main,
    "distributed": distributed.__main__.main,
    "tune": tune.__main__.main,
    "vgse": vgse.__main__.main,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reader has: class folders, a list of unseen classes, words, a configuration."""
    folder = tmp_path_factory.mktemp("reader")
    make_tiny(folder)
    (folder / "images").rename(folder / "PATH")
    shutil.copy(folder / "words.txt", folder / "glove.txt")
    (folder / "configs").mkdir()
    config = {
        "data": {"shards": "packed", "words": "words.txt"},
        "model": {"num_clusters": 20, "projection": 64},
        "training": {"epochs": 2, "batch_size": 60},
    }
    (folder / "configs" / "demo.yaml").write_text(yaml.safe_dump(config))
    search = {
        "run": "demo.yaml",
        "grace_epochs": 1,
        "finalists": 0,  # that they are retrained is tested elsewhere
        "space": {"loss.entropy": {"low": 0.1, "high": 1, "log": True}},
    }
    (folder / "configs" / "search-demo.yaml").write_text(yaml.safe_dump(search))
    return folder


def test_the_make_commands_are_targets_of_the_makefile() -> None:
    makefile = (README.parent / "Makefile").read_text()
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_every_python_command_runs(
    ray_session: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    ran = []
    for line in commands():
        if not line.startswith("python -m "):
            continue
        # The reader's own set is as small as this one.
        _, _, module, *arguments = shlex.split(line.replace("NAME", "mine"))
        if module == "distributed" and "mine" in arguments:
            arguments += ["--model.num_clusters", "20", "--model.projection", "64"]
            arguments += ["--training.batch_size", "60", "--training.epochs", "2"]
        elif "--trials" in arguments:
            arguments[arguments.index("--trials") + 1] = "2"
        elif "--model.num_clusters" in arguments:
            arguments[arguments.index("--model.num_clusters") + 1] = "30"
        assert MODULES[module](arguments) == 0, line
        ran.append(module)
    assert ran.count("distributed") >= 3
    assert ran.count("vgse") == 4
    assert ran.count("tune") == 2
    assert (folder / "runs" / "mine-search" / "search.html").is_file()
    assert (folder / "runs" / "mine" / "report.html").is_file()


def test_the_python_snippets_read_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block.replace("NAME", "mine"), names)
    assert names["attributes"].shape == (14, 20)  # type: ignore[attr-defined]
    assert len(names["embedding"]) == 14  # type: ignore[arg-type]
    assert len(names["unseen"]) == 40  # type: ignore[arg-type]
