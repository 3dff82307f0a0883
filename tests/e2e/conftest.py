"""One run of a reader's own images, made by the README's commands, for all end-to-end tests."""

import contextlib
import shutil
from pathlib import Path

import pytest
import yaml

from readme_commands import block_with, run_command
from tiny import UNSEEN, draw_tree, write_words

EPOCHS = 15
SMALL_PACK = "--num_patches 4 --short_side 64 --quality 95 --images_per_shard 100 --workers 1"
SMALL_RUN = (
    "--model.num_clusters 20 --model.projection 64 --training.batch_size 60 "
    f"--training.epochs {EPOCHS} --training.learning_rate 1e-2"
)


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reader has: class folders, a list of unseen classes, words, configurations."""
    folder = tmp_path_factory.mktemp("reader")
    draw_tree(folder / "PATH")
    write_words(folder / "glove.txt")
    shutil.copy(folder / "glove.txt", folder / "words.txt")
    (folder / "unseen.txt").write_text("\n".join(UNSEEN) + "\n")
    (folder / "configs").mkdir()
    demo = {
        "data": {"shards": "data/mine", "words": "words.txt"},
        "model": {"num_clusters": 20, "projection": 64},
        "training": {"epochs": 1, "batch_size": 60},
        "evaluation": {"models": ["prototype"]},
        "cluster": {"num_workers": 1},  # those of `own_run` are two
    }
    search = {
        "run": "demo.yaml",
        "grace_epochs": 1,
        "finalists": 0,  # that they are retrained is tested elsewhere
        "space": {"loss.entropy": {"low": 0.1, "high": 1, "log": True}},
    }
    (folder / "configs" / "demo.yaml").write_text(yaml.safe_dump(demo))
    (folder / "configs" / "search-demo.yaml").write_text(yaml.safe_dump(search))
    return folder


@pytest.fixture(scope="session")
def own_run(ray_session: None, reader: Path) -> Path:
    """The run folder that the README's section on the reader's own images leads to."""
    with contextlib.chdir(reader):
        for line in block_with("shards pack"):
            more = {"pack": SMALL_PACK, "train": SMALL_RUN}.get(line.split()[3], "")
            assert run_command(f"{line} {more}") == 0, line
    return reader / "runs" / "mine"
