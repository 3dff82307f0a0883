"""The feature cache at a URL: files are made on one node and read on others by way of a copy."""

import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch

from distributed.features.cache import Unit, read_unit, write_unit
from distributed.storage import file_sizes
from shards.objects import ACCESS, Access

UNIT = Unit("train-000000.tar", "train", 0, 3)
URL = "memory://cache/net-1"


def node(root: Path, number: int) -> Access:
    """A node that keeps its copies in a folder of its own."""
    return replace(ACCESS, cache=str(root / f"node{number}"))


def make(folder: str, access: Access, unit: Unit = UNIT) -> None:
    tensors = {
        "labels": torch.arange(3),
        "rows": torch.arange(3),
        "images": torch.rand(3, 4).half(),
        "patches": torch.rand(3, 2, 4).half(),
    }
    write_unit(folder, unit, tensors, {"keys": json.dumps(["a", "b", "c"])}, access)


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    fsspec.filesystem("memory").store.clear()
    yield
    fsspec.filesystem("memory").store.clear()


def test_what_one_node_made_another_reads_without_a_shared_disk(tmp_path: Path) -> None:
    make(URL, node(tmp_path, 1))
    assert UNIT.file in file_sizes(URL)
    ours, theirs = (read_unit(URL, UNIT, node(tmp_path, number)) for number in (1, 2))
    assert theirs.keys == ["a", "b", "c"]
    torch.testing.assert_close(theirs.patches, ours.patches)


def test_a_copy_is_fetched_once(tmp_path: Path) -> None:
    make(URL, node(tmp_path, 1))
    first = read_unit(URL, UNIT, node(tmp_path, 2))
    fsspec.filesystem("memory").store.clear()
    again = read_unit(URL, UNIT, node(tmp_path, 2))
    torch.testing.assert_close(again.images, first.images)
    with pytest.raises(ValueError, match=r"memory://cache/net-1/train-000000-0000000.*: missing f"):
        read_unit(URL, UNIT, node(tmp_path, 3))


def test_readers_that_fetch_at_once_all_read_right(tmp_path: Path) -> None:
    make(URL, node(tmp_path, 1))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read_unit(URL, UNIT, node(tmp_path, 2)), range(8)))
    for unit in found:
        torch.testing.assert_close(unit.patches, found[0].patches)
    left = [path.name for path in (tmp_path / "node2").rglob("*") if path.is_file()]
    assert left == [UNIT.file]


def test_caches_at_two_urls_do_not_share_copies(tmp_path: Path) -> None:
    for url in (URL, "memory://other/net-1"):
        make(url, node(tmp_path, 1))
    one, other = (read_unit(url, UNIT, node(tmp_path, 2)) for url in (URL, "memory://other/net-1"))
    assert not torch.equal(one.patches, other.patches)


def test_without_a_folder_copies_go_where_no_other_user_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make(URL, ACCESS)
    (root,) = tmp_path.iterdir()
    assert root.stat().st_mode & 0o777 == 0o700 and root.stat().st_uid == os.getuid()
    root.rename(tmp_path / "elsewhere")
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"belongs to another user; set data.shard_cache"):
        read_unit(URL, UNIT, ACCESS)


def test_a_cache_on_a_shared_disk_is_read_in_place(tmp_path: Path) -> None:
    make(str(tmp_path / "cache"), node(tmp_path, 1))
    read_unit(tmp_path / "cache", UNIT, node(tmp_path, 2))
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_copies_that_were_not_used_for_longest_leave_a_node_and_come_back_when_asked_for(
    tmp_path: Path,
) -> None:
    units = [replace(UNIT, start=3 * number, stop=3 * number + 3) for number in range(8)]
    for unit in units:
        make(URL, node(tmp_path, 1), unit)
    (size,) = {path.stat().st_size for path in (tmp_path / "node1").rglob("*.safetensors")}
    limited = replace(node(tmp_path, 2), cache_bytes=4 * size)

    def copies() -> set[str]:
        return {path.name for path in (tmp_path / "node2").rglob("*.safetensors")}

    (tmp_path / "node2").mkdir()
    shard = tmp_path / "node2" / f"{'0' * 64}.tar"  # copies of shards and units share the room
    shard.write_bytes(bytes(2 * size))
    os.utime(shard, (0, 0))
    found = []
    for unit in units:
        found.append(read_unit(URL, unit, limited))
        os.utime(next((tmp_path / "node2").rglob(unit.file)), (unit.start + 1,) * 2)
        assert len(copies()) <= 4
    assert not shard.exists()
    assert units[-1].file in copies() and units[0].file not in copies()
    again = read_unit(URL, units[0], limited)
    torch.testing.assert_close(again.patches, found[0].patches)  # still mapped when it was removed
    make(URL, limited, replace(UNIT, start=100, stop=103))  # who computes a unit makes room, too
    assert len(copies()) <= 4
    free = replace(node(tmp_path, 3), cache_bytes=None)
    for unit in units:
        read_unit(URL, unit, free)
    assert len(list((tmp_path / "node3").rglob("*.safetensors"))) == 8


def test_without_a_folder_the_limit_holds_for_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for number in range(4):
        make(URL, replace(ACCESS, cache_bytes=1000), replace(UNIT, start=number, stop=number + 3))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) <= 1000
