"""Shards that are damaged after they were packed, some of them in the middle of a run."""

import shutil
from pathlib import Path
from tarfile import open as open_tar

import pytest

from fault_runs import CONFIG, PIXELS, only_line, record, start_run


@pytest.fixture
def copy(tiny_runs: Path, tmp_path: Path) -> Path:
    """The packed set of its own, without a feature cache."""
    ignored = shutil.ignore_patterns("features")
    shutil.copytree(tiny_runs / "packed", tmp_path / "packed", ignore=ignored)
    shutil.copy(tiny_runs / "words.txt", tmp_path)
    return tmp_path


def damage_pictures(root: Path, keep: int = 100) -> int:
    """Overwrite the pictures of every training shard from their byte `keep` on; how many."""
    count = 0
    for shard in sorted((root / "packed").glob("train-*.tar")):
        with open_tar(shard) as archive:
            members = [m for m in archive.getmembers() if m.name.endswith(".jpg")]
        with shard.open("r+b") as file:
            for member in members:
                file.seek(member.offset_data + keep)
                file.write(bytes(member.size - keep))
                count += 1
    return count


@pytest.mark.slow
def test_pictures_that_are_damaged_before_a_run_end_it_in_one_line(copy: Path) -> None:
    assert damage_pictures(copy) == 240
    line = only_line(start_run(copy, "before", CONFIG).end(2))
    assert "240 of 296 images are damaged" in line
    again = only_line(start_run(copy, "before", CONFIG).end(2))
    assert "240 of 296 images are damaged" in again  # what the first run cached hides nothing
    assert "more than data.max_damaged=0.01 allows" in line
    record("240 of 296 pictures are truncated before the run", [line], copy)


@pytest.mark.slow
def test_pictures_that_are_damaged_during_a_run_end_it_in_one_line(copy: Path) -> None:
    run = start_run(copy, "during", PIXELS)
    run.wait_for_checkpoints()
    damage_pictures(copy)
    line = only_line(run.end(2))
    assert "max_damaged=0.01 allows" in line
    assert "(last: 0" in line and "python -m shards check" in line
    record("pictures are overwritten in the middle of training", [line], copy)


@pytest.mark.slow
def test_a_shard_that_is_cut_short_during_a_run_ends_it_in_one_line(copy: Path) -> None:
    run = start_run(copy, "short", PIXELS)
    run.wait_for_checkpoints()
    for shard in (copy / "packed").glob("train-*.tar"):
        with shard.open("r+b") as file:
            file.truncate(shard.stat().st_size // 2)
    line = only_line(run.end(2))
    assert "train-" in line and ".tar" in line
    record("shards are cut short in the middle of training", [line], copy)
