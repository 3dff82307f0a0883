"""The shard cache: copies that are whole, right, bounded, and made without locks."""

import hashlib
import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from shards.manifest import Manifest
from shards.objects import Access, Retry
from shards.samples import RawSample, read_raw
from shards.shard_cache import cached_copy
from shards_trees import flat_tree, pack_tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("cache")
    flat_tree(root / "set", images=20)
    return pack_tree(root / "set", root / "out", images_per_shard=30)


@pytest.fixture
def far(packed: Manifest, tmp_path: Path) -> Manifest:
    """The same shards behind fsspec: `local://` counts as a store."""
    folder = tmp_path / "store"
    folder.mkdir()
    for shard in packed.shards:
        (folder / shard.file).write_bytes(Path(packed.url, shard.file).read_bytes())
    return replace(packed, url=f"local://{folder}", table=packed.shards)


def access(tmp_path: Path, limit: int | None = None) -> Access:
    return Access(Retry(2, 0.01), cache=str(tmp_path / "cache"), cache_bytes=limit)


def read_all(manifest: Manifest, how: Access) -> list[RawSample]:
    return [raw for shard in manifest.shards for raw in read_raw(manifest, shard, access=how)]


def copies(tmp_path: Path) -> dict[str, str]:
    """sha256 by file name."""
    files = sorted((tmp_path / "cache").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_samples_from_the_cache_are_those_of_the_store(far: Manifest, tmp_path: Path) -> None:
    plain = read_all(far, Access())
    assert read_all(far, access(tmp_path)) == plain
    Path(far.url.removeprefix("local://")).rename(tmp_path / "gone")
    assert read_all(far, access(tmp_path)) == plain
    assert copies(tmp_path) == {f"{s.sha256}.tar": s.sha256 for s in far.shards}


def test_local_shards_are_not_copied(packed: Manifest, tmp_path: Path) -> None:
    read_all(packed, access(tmp_path))
    assert not (tmp_path / "cache").exists()


def test_a_shard_other_than_the_manifest_says_is_refused(far: Manifest, tmp_path: Path) -> None:
    path = Path(far.url.removeprefix("local://"), far.shards[0].file)
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{far.shards[0].file}: sha256 is .* changed after p"):
        read_all(far, access(tmp_path))
    assert copies(tmp_path) == {}


def test_a_missing_shard_is_named(far: Manifest, tmp_path: Path) -> None:
    Path(far.url.removeprefix("local://"), far.shards[0].file).unlink()
    with pytest.raises(ValueError, match=rf"{far.shards[0].file}: missing shard"):
        read_all(far, access(tmp_path))
    assert copies(tmp_path) == {}


def test_a_copy_of_the_wrong_length_is_made_again(far: Manifest, tmp_path: Path) -> None:
    how = access(tmp_path)
    plain = read_all(far, how)
    shard = far.shards[0]
    (tmp_path / "cache" / f"{shard.sha256}.tar").write_bytes(b"half")
    assert read_all(far, how) == plain
    assert copies(tmp_path)[f"{shard.sha256}.tar"] == shard.sha256


def test_what_was_not_used_for_longest_leaves_a_full_cache(far: Manifest, tmp_path: Path) -> None:
    one, two, three = far.shards[:3]
    how = access(tmp_path, one.bytes + two.bytes + three.bytes - 1)
    for age, shard in ((300, one), (200, two)):
        path = cached_copy(f"{far.url}/{shard.file}", shard, how)
        assert path is not None
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    cached_copy(f"{far.url}/{one.file}", one, how)  # used again
    cached_copy(f"{far.url}/{three.file}", three, how)
    assert set(copies(tmp_path)) == {f"{one.sha256}.tar", f"{three.sha256}.tar"}
    assert read_all(far, how) == read_all(far, Access())


def test_a_shard_larger_than_the_cache_is_streamed(far: Manifest, tmp_path: Path) -> None:
    assert read_all(far, access(tmp_path, 1000)) == read_all(far, Access())
    assert copies(tmp_path) == {}


def test_a_full_disk_turns_the_cache_off_and_leaves_nothing(far: Manifest, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        found = read_all(far, access(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found == read_all(far, Access()) and copies(tmp_path) == {}


def test_a_cache_folder_that_cannot_be_made_is_one_line(far: Manifest, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match=r"cache: the shard cache cannot be written .*choose an"):
        read_all(far, access(tmp_path))


READER = """
import hashlib, json, sys
from shards.objects import Access
from shards.manifest import ShardEntry
from shards.shard_cache import read_cached
url, cache = sys.argv[1:3]
shards = [ShardEntry(**row) for row in json.loads(sys.argv[3])]
print("ready", flush=True)
sys.stdin.readline()
for shard in shards:
    data = read_cached(f"{url}/{shard.file}", shard, 0, shard.bytes, Access(cache=cache))
    assert hashlib.sha256(data).hexdigest() == shard.sha256
print("right")
"""


def test_two_processes_that_fill_a_cache_at_once_both_read_right(
    far: Manifest, tmp_path: Path
) -> None:
    rows = json.dumps([asdict(shard) for shard in far.shards])
    arguments = [far.url, str(tmp_path / "cache"), rows]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", READER, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0].strip() for process in processes] == ["right", "right"]
    assert copies(tmp_path) == {f"{s.sha256}.tar": s.sha256 for s in far.shards}
