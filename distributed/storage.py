"""Run folders and caches on a disk or at any fsspec URL: the few things that are done to them.

Address, credentials and options of a store are those of shards, see `shards.objects`. What fails
is tried again for more than a minute; then a ValueError says so in one line.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from shards import objects
from shards.objects import PATIENT, Retry, is_remote, with_retries
from shards.objects import join_url as join
from vgse.errors import UserError
from vgse.files import written_whole

__all__ = [
    "absolute",
    "exists",
    "fetch_all",
    "file_sizes",
    "get_file",
    "is_remote",
    "join",
    "put_file",
    "read",
    "write",
]

Result = TypeVar("Result")

# Stores without real folders: an object appears whole or not at all, and a missing parent means
# that the bucket is missing, which is not ours to make.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss"}


def absolute(url: str | Path) -> str:
    """The address as every node of a cluster can use it."""
    text = str(url)
    if is_remote(text):
        return text.rstrip("/")
    return os.path.abspath(text.removeprefix("file://"))


def exists(url: str, *, retry: Retry = PATIENT) -> bool:
    """Whether there is a file or folder of this address."""
    if not is_remote(url):
        return Path(url).exists()
    return call(url, "looked up", lambda filesystem, path: bool(filesystem.exists(path)), retry)


def read(url: str, *, retry: Retry = PATIENT) -> bytes:
    """The whole content of a file; FileNotFoundError if there is none."""
    return objects.read_bytes(url, retry=retry)


def write(url: str, data: bytes, *, retry: Retry = PATIENT) -> None:
    """Write a file that appears whole or not at all."""
    if not is_remote(url):
        with written_whole(Path(url)) as stream:
            stream.write(data)
        return
    _put(url, lambda filesystem, path: filesystem.pipe_file(path, data), retry)


def put_file(local: Path, url: str, *, retry: Retry = PATIENT) -> None:
    """Copy a local file to a URL, where it appears whole or not at all."""
    assert is_remote(url)
    _put(url, lambda filesystem, path: filesystem.put_file(str(local), path), retry)


def get_file(url: str, local: Path, *, retry: Retry = PATIENT) -> None:
    """Copy a file from a URL into a local one, which appears whole or not at all.

    Any number of processes may do so at once. Raises FileNotFoundError if there is none.
    """
    local.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=local.parent, prefix=".part-")
    os.close(handle)
    try:
        call(url, "read", lambda filesystem, path: _download(filesystem, path, part), retry)
        os.chmod(part, 0o644)
        os.replace(part, local)
    finally:
        Path(part).unlink(missing_ok=True)


def file_sizes(folder: str, *, retry: Retry = PATIENT) -> dict[str, int]:
    """Length in bytes of every file directly in a folder, by name; empty if there is none."""
    return objects.file_sizes(folder, retry=retry, missing_ok=True)


def fetch_all(folder: str, names: Iterable[str], local: Path) -> None:
    """Copy those of some files that are there from a URL into a local folder."""
    there = file_sizes(folder)
    for name in names:
        if name in there:
            get_file(join(folder, name), local / name)


def call(url: str, what: str, work: Callable[[Any, str], Result], retry: Retry) -> Result:
    """`work(filesystem, path)` of a URL, again after an error that may pass.

    FileNotFoundError goes through. Raises ValueError for what cannot pass, in one line.
    """
    filesystem, path = objects.open_filesystem(url)

    def once() -> Result:
        filesystem.invalidate_cache()  # others write there too
        return work(filesystem, path)

    return with_retries(once, url, what, retry)


def _download(filesystem: Any, path: str, part: str) -> None:
    filesystem.get_file(path, part)
    size = filesystem.info(path)["size"]
    if (found := os.path.getsize(part)) != size:
        raise EOFError(f"{found} bytes instead of {size}")


def _put(url: str, work: Callable[[Any, str], object], retry: Retry) -> None:
    filesystem, path = objects.open_filesystem(url)
    protocols = filesystem.protocol
    scheme = protocols if isinstance(protocols, str) else protocols[0]
    if scheme in _OBJECT_STORES:
        try:
            with_retries(lambda: work(filesystem, path), url, "written", retry)
        except FileNotFoundError:
            raise UserError(f"{url}: no such bucket; make it, or correct the address") from None
        return

    def beside_then_rename() -> None:
        folder, _, name = path.rpartition("/")
        filesystem.makedirs(folder, exist_ok=True)
        part = f"{folder}/.{name}.{os.getpid()}-{threading.get_ident()}.part"
        try:
            work(filesystem, part)
            filesystem.mv(part, path)
        finally:
            if filesystem.exists(part):
                filesystem.rm_file(part)

    with_retries(beside_then_rename, url, "written", retry)
