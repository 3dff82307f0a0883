"""Stages that are done once, and the files between them."""

import io
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from rich.console import Console

from distributed.display import Display, Stage
from distributed.embedding.files import (
    FILES,
    Embedded,
    EmbeddedImages,
    load_embedded,
    save_embedded,
)
from distributed.stages import RunFolder, digest, download, run_stage, working_folder
from distributed.storage import file_sizes
from shards.manifest import SPLITS
from shards.objects import join_url
from vgse.embeddings import ClassSums


@pytest.fixture(params=["disk", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "runs" / "mine")
        return
    yield f"memory://{tmp_path}/mine"
    fsspec.filesystem("memory").store.clear()


class Work:
    """A stage that copies a number into its file, and counts how often it ran."""

    def __init__(self, url: str) -> None:
        self.url, self.ran, self.said = url, 0, io.StringIO()

    def do(self, value: int, *, inputs: str = "", redo: bool = False, fail: bool = False) -> None:
        def write(stage: Stage) -> None:
            self.ran += 1
            (run.local / "out.npz").write_bytes(bytes(value))
            if fail:
                raise KeyboardInterrupt
            stage.summary = "done"

        display = Display(Console(file=self.said))
        with working_folder(self.url) as run, display:
            made_from = inputs or digest(value)
            run_stage(run, "relations", made_from, ["out.npz"], write, display, redo=redo)


def test_a_stage_is_done_once_while_inputs_and_files_stay(url: str) -> None:
    work = Work(url)
    work.do(3)
    assert file_sizes(url)["out.npz"] == 3
    work.do(3)
    assert work.ran == 1 and "relations   there already: out.npz" in work.said.getvalue()
    work.do(4)
    assert work.ran == 2, "other inputs"
    work.do(4, redo=True)
    assert work.ran == 3


def test_a_stage_is_done_again_when_a_file_is_missing_or_cut_short(url: str) -> None:
    work = Work(url)
    work.do(3)
    filesystem, path = fsspec.core.url_to_fs(join_url(url, "out.npz"))
    filesystem.pipe_file(path, b"x")
    work.do(3)
    assert work.ran == 2
    filesystem.rm_file(path)
    work.do(3)
    assert work.ran == 3 and file_sizes(url)["out.npz"] == 3


def test_a_stage_that_broke_off_is_not_done(url: str) -> None:
    work = Work(url)
    with pytest.raises(KeyboardInterrupt):
        work.do(3, fail=True)
    work.do(3)
    assert work.ran == 2


def test_a_damaged_record_only_costs_the_work(url: str) -> None:
    work = Work(url)
    work.do(3)
    filesystem, path = fsspec.core.url_to_fs(join_url(url, "stages.json"))
    filesystem.pipe_file(path, b'{"relations": {"inp')
    work.do(3)
    assert work.ran == 2


def test_of_a_run_at_a_url_only_the_report_stays_here(tmp_path: Path) -> None:
    with working_folder(f"memory://{tmp_path}/far") as run:
        assert run.local.name == "far", "the report shows this name"
        (run.local / "report.html").write_text("<html>")
        (run.local / "big.npz").write_text("…")
    assert [path.name for path in run.local.iterdir()] == ["report.html"]
    with working_folder(f"memory://{tmp_path}/far") as run:
        (run.local / "big.npz").write_text("…")
    assert not run.local.parent.exists()


def test_files_of_a_run_at_a_url_are_fetched_unless_they_are_here(tmp_path: Path) -> None:
    url = f"memory://{tmp_path}/far"
    filesystem = fsspec.filesystem("memory")
    for name in ("a", "b"):
        filesystem.pipe_file(f"{tmp_path}/far/{name}", b"theirs")
    (tmp_path / "b").write_bytes(b"ours")
    download(RunFolder(url, tmp_path), "a", "b", "none")
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert (tmp_path / "b").read_bytes() == b"ours"
    assert not (tmp_path / "none").exists()


def embedded(start: bool) -> Embedded:
    random = np.random.default_rng(0)

    def sums() -> dict[str, ClassSums]:
        counts = random.integers(0, 9, (2, 4))
        two = random.random((2, 4, 3))
        return {s: ClassSums(two[0], two[1], counts[0], counts[:1]) for s in SPLITS}

    splits = [split for split in SPLITS for _ in range(2)]
    images = EmbeddedImages(
        keys=[f"{split}/{i}" for i, split in enumerate(splits)],
        sources=["ünï.png", ""] * len(SPLITS),
        shards=[f"{split}-000000.tar" for split in splits],
        splits=splits,
        rows=random.integers(0, 9, 6),
        labels=random.integers(0, 4, 6),
        features=random.random((6, 5)).astype(np.float16),
        assignments=random.random((6, 3)).astype(np.float32),
        strongest=random.integers(0, 3, (6, 6)).astype(np.int32),
        scores=random.random((6, 6)).astype(np.float32),
        start_assignments=random.random((6, 3)).astype(np.float32) if start else None,
    )
    return Embedded(sums(), sums() if start else {}, [images])


@pytest.mark.parametrize("start", [True, False])
def test_what_the_embedding_pass_found_comes_back_to_the_last_bit(
    start: bool, tmp_path: Path
) -> None:
    before = embedded(start)
    save_embedded(tmp_path, before)
    after = load_embedded(tmp_path)
    for name in EmbeddedImages.__dataclass_fields__:
        ours, theirs = getattr(after.images, name), getattr(before.images, name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, name)
    for own, other in ((after.sums, before.sums), (after.start_sums, before.start_sums)):
        assert own.keys() == other.keys()
        for split in own:
            for part in ClassSums.__dataclass_fields__:
                np.testing.assert_array_equal(
                    getattr(own[split], part), getattr(other[split], part)
                )


def test_sums_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    save_embedded(tmp_path, before := embedded(True))
    path = tmp_path / FILES[1]
    with np.load(path) as file:  # it held one sum where there are two parts of it now
        np.savez(path, **{name: file[name] for name in file.files if "rests" not in name})
    for split, sums in load_embedded(tmp_path).sums.items():
        np.testing.assert_array_equal(sums.sums, before.sums[split].sums)
        assert not sums.rests.any()


def test_a_damaged_file_of_the_embedding_pass_is_named(tmp_path: Path) -> None:
    save_embedded(tmp_path, embedded(True))
    path = tmp_path / FILES[1]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"embedded.npz: is not a readable .npz"):
        load_embedded(tmp_path)
