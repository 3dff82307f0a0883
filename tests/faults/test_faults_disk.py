"""A disk that fills up, on a small file system of memory in a namespace of its own."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pyarrow.fs import copy_files

from distributed.train.filesystem import ray_storage
from fault_runs import (
    CONFIG,
    ROOT,
    Ended,
    assert_same_result,
    committed_step,
    only_line,
    record,
    start_run,
)
from report_run import make_run
from shards.__main__ import main as shards_main
from shards_trees import flat_tree
from vgse.__main__ import main as vgse_main
from vgse.files import LOCK, disk_errors_in_one_line, is_full, read_arrays, write_json
from vgse.images.image_features import ImageFeatures, write_image_features


@dataclass(frozen=True)
class SmallDisk:
    """A disk of a few MB that the processes of one namespace see."""

    folder: Path  # as they see it
    here: Path  # as this process does
    enter: tuple[str, ...]  # command that runs another one among them

    @property
    def ballast(self) -> Path:
        return self.here / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Take all the room but some bytes."""
        free = os.statvfs(self.here)
        with self.ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leave)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=24m tmpfs '{folder}' && echo mounted && exec cat"
    holder = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert holder.stdout and holder.stdin
    said = holder.stdout.readline()
    if said != "mounted\n":
        holder.wait()
        pytest.skip(f"no user namespace with a mount of its own here: {said.strip()}")
    inside = ("--target", str(holder.pid), "--user", "--mount", "--preserve-credentials")
    enter = ("nsenter", *inside, f"--wd={ROOT}")
    yield SmallDisk(folder, Path(f"/proc/{holder.pid}/root{folder}"), enter)
    holder.stdin.close()
    holder.wait()


def test_a_file_that_does_not_fit_is_told_in_one_line_and_leaves_nothing(
    small_disk: SmallDisk,
) -> None:
    small_disk.fill(leave=8192)
    write_json(small_disk.here / "small.json", {"a": 1})
    with pytest.raises(
        ValueError, match=r"no space left on its disk \(writing large\.json\); free"
    ):
        write_json(small_disk.here / "large.json", {"a": "x" * 100_000})
    names = {path.name for path in small_disk.here.iterdir()}
    assert names == {"ballast", "small.json"}


def test_what_ray_writes_on_a_full_disk_leaves_the_old_content_and_nothing_besides(
    small_disk: SmallDisk, tmp_path: Path
) -> None:
    _, filesystem = ray_storage(str(small_disk.here))
    listed = small_disk.here / "list.json"
    with filesystem.open_output_stream(str(listed)) as stream:
        stream.write(b"old")
    small_disk.fill(leave=8192)
    with (
        pytest.raises(ValueError, match=r"no space left on its disk \(writing list\.json\)"),
        filesystem.open_output_stream(str(listed)) as stream,
    ):
        stream.write(b"new" * 100_000)
    assert listed.read_bytes() == b"old"
    (tmp_path / "checkpoint").mkdir()
    filesystem.create_dir(str(small_disk.here / "checkpoint"))
    (tmp_path / "checkpoint" / "model").write_bytes(bytes(100_000))
    with pytest.raises(ValueError, match=r"checkpoint: no space left.* \(writing model\)"):
        copy_files(
            str(tmp_path / "checkpoint"),
            str(small_disk.here / "checkpoint"),
            destination_filesystem=filesystem,
        )
    assert not list(small_disk.here.rglob("*model*"))
    small_disk.ballast.unlink()
    copy_files(
        str(tmp_path / "checkpoint"),
        str(small_disk.here / "checkpoint"),
        destination_filesystem=filesystem,
    )
    assert (small_disk.here / "checkpoint" / "model").read_bytes() == bytes(100_000)


def test_only_a_full_disk_is_told_as_one() -> None:
    assert not is_full(PermissionError(13, "Permission denied"))
    with (
        pytest.raises(ValueError, match=r"cannot be used \(Permission denied\)"),
        disk_errors_in_one_line("file"),
    ):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(KeyError), disk_errors_in_one_line("file"):
        raise KeyError
    with pytest.raises(ValueError, match="no space left"), disk_errors_in_one_line("file"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def whole_run(folder: Path) -> Path:
    """A run folder from which every late stage can be done anew."""
    run = make_run(folder)
    arrays = read_arrays(run / "image_features.npz", "labels", "split")
    count = len(arrays["labels"])
    features = np.random.default_rng(0).normal(size=(count, 16)).astype(np.float16)
    keys = [str(number) for number in range(count)]
    assignments = np.zeros((count, 12), np.float16)
    write_image_features(run, ImageFeatures(features, **arrays, keys=keys, assignments=assignments))
    return run


@pytest.mark.parametrize(
    ("command", "more", "file"),
    [
        ("relate", [], "class_embeddings.npz"),
        ("evaluate", ["--models", "[prototype]"], "evaluation.json"),
        ("export", ["--features"], "VGSE_SMO_splits.mat"),
        ("report", [], "report.html"),
    ],
)
def test_a_late_stage_on_a_full_disk_ends_in_one_line_and_changes_nothing(
    small_disk: SmallDisk,
    capsys: pytest.CaptureFixture[str],
    command: str,
    more: list[str],
    file: str,
) -> None:
    run = whole_run(small_disk.here / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    small_disk.fill()
    assert vgse_main([command, str(run), *more]) == 2
    assert capsys.readouterr().err == (
        f"error: {run}: no space left on its disk (writing {file}); free some, then run the same "
        "command again\n"
    )
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    small_disk.ballast.unlink()
    assert vgse_main([command, str(run), *more]) == 0
    assert (run / file).read_bytes() != before.get(file)


def test_packing_and_checking_on_a_full_disk_end_in_one_line(
    small_disk: SmallDisk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = f"folder:{flat_tree(tmp_path / 'set')}", small_disk.here / "packed"
    pack = ["pack", "--source", source, "--out", str(out), "--unseen_fraction", "0.34"]
    pack += ["--num_patches", "4", "--workers", "1"]
    small_disk.fill(leave=8192)
    assert shards_main(pack) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert "No space left on device; free some space, then run the same command again" in line
    small_disk.ballast.unlink()
    assert shards_main(pack) == 0
    small_disk.fill()
    check = ["check", str(out), "--workers", "1"]
    assert shards_main(check) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert "packed: no space left on its disk (writing check.png); free some" in line
    assert not list(out.glob("*check*"))
    small_disk.ballast.unlink()
    assert shards_main(check) == 0
    assert (out / "check.png").is_file()


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    source = f"folder:{flat_tree(tmp_path / 'set')}"
    pack = ["pack", "--source", source, "--out", str(tmp_path / "file" / "packed")]
    assert shards_main([*pack, "--unseen_fraction", "0.34", "--workers", "1"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert "packed: Not a directory; check the folder" in line


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_in_one_line_and_goes_on_when_there_is_room(
    tiny_runs: Path, uninterrupted: Ended, small_disk: SmallDisk
) -> None:
    place = {"storage": str(small_disk.folder)}
    start = (tiny_runs, "disk", CONFIG, place)
    options = {"before": small_disk.enter, "folder": small_disk.here / "disk"}
    run = start_run(*start, **options)  # type: ignore[arg-type]
    run.wait_for_checkpoints(20)
    small_disk.fill(leave=4096)
    stopped = run.end(2)
    line = only_line(stopped)
    assert "no space left on its disk" in line
    assert "then run the same command again" in line
    assert str(small_disk.folder / "disk") in line
    before = committed_step(run.folder)
    assert before > 20  # the list of checkpoints is whole
    small_disk.ballast.unlink()
    second = start_run(*start, **options)  # type: ignore[arg-type]
    last = 10 * CONFIG["training"]["epochs"]
    second.wait_until(lambda: committed_step(run.folder) >= last, "last checkpoint")
    small_disk.fill(leave=100_000)
    results = second.end(2)
    other = only_line(results)
    assert "no space left on its disk (writing " in other
    small_disk.ballast.unlink()
    third = start_run(*start, **options).end()  # type: ignore[arg-type]
    hidden = {path.name for path in run.folder.rglob(".*")}
    assert hidden <= {".validate_storage_marker", LOCK}  # nothing half written
    assert len(list(run.folder.glob("checkpoint_*/"))) == CONFIG["training"]["checkpoints_kept"]
    figures = {
        "seconds": stopped.seconds + results.seconds + third.seconds - uninterrupted.seconds,
        "difference": assert_same_result(run.folder, uninterrupted.folder),
    }
    record(
        "the run folder's disk is full in training, and again when results are written; "
        "each time the same command when there is room",
        [line, other],
        small_disk.folder,
        **figures,
    )


def test_a_file_where_a_folder_should_be_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ValueError, match=r"runs: cannot be used \(File exists\); choose another"):
        write_json(tmp_path / "runs" / "a.json", {})
