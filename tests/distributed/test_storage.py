"""Run folders at URLs: what is written appears whole, survives trouble, and fails in one line."""

import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow.fs
import pytest

from distributed.storage import (
    absolute,
    download_file,
    file_sizes,
    read_bytes,
    upload_file,
    write_bytes,
)
from distributed.train.filesystem import StoreHandler, ray_storage
from s3_gate import gate_before
from shards.objects import Retry, join_url
from shards.objects import file_sizes as sizes
from shards_s3 import CREDENTIALS, free_port, s3_server

BUCKET = "runs"
QUICK = Retry(attempts=3, first_wait_s=0.01)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("s3fs")
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        forget_clients()
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield address
    forget_clients()


def forget_clients() -> None:
    """fsspec keeps a client as it was made, whatever the environment says since."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(params=["local", "local://", "memory://", "s3://"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that does not exist yet, on a disk and in three kinds of store."""
    if request.param == "local":
        return str(tmp_path / "root")
    if request.param == "s3://":
        request.getfixturevalue("address")
        return f"s3://{BUCKET}/{tmp_path.name}"
    return f"{request.param}{tmp_path / 'root'}"


def test_a_file_comes_back_is_replaced_and_is_listed_with_its_size(root: str) -> None:
    url = join_url(root, "init/mark")
    assert file_sizes(join_url(root, "init")) == {}
    write_bytes(url, b"one")
    write_bytes(url, b"second")
    assert read_bytes(url) == b"second"
    assert file_sizes(join_url(root, "init")) == {"mark": 6}


def test_what_is_not_there_is_a_file_not_found(root: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(join_url(root, "none"))
    if "://" in root:
        with pytest.raises(FileNotFoundError):
            download_file(join_url(root, "none"), tmp_path / "copy")
        assert not list(tmp_path.glob("*copy*")) and not list(tmp_path.glob(".part*"))


def test_a_folder_to_be_listed_must_be_there_unless_told_otherwise(root: str) -> None:
    with pytest.raises(ValueError, match="none: no such folder or bucket"):
        sizes(join_url(root, "none"))
    assert sizes(join_url(root, "none"), missing_ok=True) == {}


def test_files_go_there_and_back(root: str, tmp_path: Path) -> None:
    if "://" not in root:
        return
    data = bytes(range(256)) * 40_000  # more than one part of an upload
    (tmp_path / "here").write_bytes(data)
    upload_file(tmp_path / "here", join_url(root, "a/there"))
    download_file(join_url(root, "a/there"), tmp_path / "back" / "again")
    assert (tmp_path / "back" / "again").read_bytes() == data
    assert file_sizes(join_url(root, "a")) == {"there": len(data)}


def test_a_bucket_that_is_not_there_is_named_and_not_made(address: str) -> None:
    with pytest.raises(ValueError, match=r"s3://nobucket/run/mark: no such bucket; make it"):
        write_bytes("s3://nobucket/run/mark", b"")
    assert not fsspec.filesystem("s3").exists("nobucket")


def test_a_store_that_stays_away_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    forget_clients()
    calls: list[Callable[[], object]] = [
        lambda: write_bytes(f"s3://{BUCKET}/a", b"", retry=QUICK),
        lambda: file_sizes(f"s3://{BUCKET}/a", retry=QUICK),
        lambda: download_file(f"s3://{BUCKET}/a", tmp_path / "a", retry=QUICK),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"3 attempts in .*check the network and") as caught:
            call()
        assert "\n" not in str(caught.value)
    forget_clients()


def test_local_addresses_become_absolute_and_urls_stay() -> None:
    assert absolute("~/runs") == str(Path.home() / "runs")
    assert absolute("runs") == str(Path.cwd() / "runs")
    assert absolute("file:///a/runs") == "/a/runs"
    assert absolute("s3://bucket/runs/") == "s3://bucket/runs"


def store_of(address: str, folder: str, retry: Retry) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system that Ray gets, as a worker unpickles it."""
    path, filesystem = ray_storage(f"s3://{BUCKET}/{folder}")
    assert path == f"{BUCKET}/{folder}"
    assert isinstance(filesystem, pyarrow.fs.PyFileSystem)
    packed = pickle.dumps(pyarrow.fs.PyFileSystem(StoreHandler(f"s3://{BUCKET}", retry)))
    assert b"testing" not in packed, "credentials stay in the environment"
    return pickle.loads(packed), path


def test_ray_sees_a_folder_go_there_and_back_and_away(address: str, tmp_path: Path) -> None:
    store, path = store_of(address, "ray", QUICK)
    (tmp_path / "checkpoint").mkdir()
    for name in ("model", "state"):
        (tmp_path / "checkpoint" / name).write_bytes(name.encode() * 1000)
    target = f"{path}/checkpoint_1"
    store.create_dir(target)
    pyarrow.fs.copy_files(
        str(tmp_path / "checkpoint"), target, destination_filesystem=store, chunk_size=512
    )
    assert store.get_file_info(target).type == pyarrow.fs.FileType.Directory
    (tmp_path / "back").mkdir()
    pyarrow.fs.copy_files(target, str(tmp_path / "back"), source_filesystem=store)
    for name in ("model", "state"):
        assert (tmp_path / "back" / name).read_bytes() == name.encode() * 1000
    store.delete_dir(target)
    assert store.get_file_info(target).type == pyarrow.fs.FileType.NotFound


def test_ray_does_not_see_a_store_that_is_away_for_a_while(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gate_before(address) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        forget_clients()
        store, path = store_of(address, "away", Retry(attempts=30, longest_wait_s=0.3))
        with store.open_output_stream(f"{path}/before") as file:
            file.write(b"before")
        gate.shut()
        timer = threading.Timer(2.0, gate.open)
        timer.start()
        with store.open_output_stream(f"{path}/after") as file:
            file.write(b"after")
        timer.join()
        gate.shut()
        short, _ = store_of(address, "away", QUICK)
        with pytest.raises(ValueError, match=r"after: cannot be looked up, 3 attempts in"):
            short.get_file_info(f"{path}/after")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    forget_clients()
    assert read_bytes(f"s3://{path}/before") == b"before"
    assert read_bytes(f"s3://{path}/after") == b"after"
