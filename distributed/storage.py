"""Run folders and caches on a disk or at any fsspec URL, reached as `shards.objects` does."""

import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards import objects
from shards.objects import PATIENT, Retry, is_remote, with_retries
from vgse.errors import UserError
from vgse.files import written_whole

# Stores without real folders: an object appears whole or not at all, and a missing parent means
# that the bucket is missing, which is not ours to make.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss"}

read_bytes = functools.partial(objects.read_bytes, retry=PATIENT)
file_sizes = functools.partial(objects.file_sizes, retry=PATIENT, missing_ok=True)


def absolute(url: str | Path) -> str:
    """The address as every node of a cluster can use it."""
    text = str(url)
    if is_remote(text):
        return text.rstrip("/")
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


def write_bytes(url: str, data: bytes, *, retry: Retry = PATIENT) -> None:
    """Write a file that appears whole or not at all."""
    if is_remote(url):
        _send(url, lambda filesystem, path: filesystem.pipe_file(path, data), retry)
        return
    with written_whole(Path(url)) as stream:
        stream.write(data)


def upload_file(local: Path, url: str, *, retry: Retry = PATIENT) -> None:
    """Copy a local file to a URL, where it appears whole or not at all."""
    _send(url, lambda filesystem, path: filesystem.put_file(str(local), path), retry)


def download_file(url: str, local: Path, *, retry: Retry = PATIENT) -> None:
    """Copy a file from a URL to a local one, which appears whole or not at all, also where others
    do so at once. FileNotFoundError if there is none."""
    filesystem, path = objects.open_filesystem(url)

    def download(part: str) -> None:
        filesystem.invalidate_cache()  # others write there too
        filesystem.get_file(path, part)
        size = filesystem.info(path)["size"]
        if (found := os.path.getsize(part)) != size:
            raise EOFError(f"{found} bytes instead of {size}")

    with written_whole(local) as stream:
        with_retries(lambda: download(stream.name), url, "read", retry)


def _send(url: str, work: Callable[[Any, str], object], retry: Retry) -> None:
    filesystem, path = objects.open_filesystem(url)
    protocol = filesystem.protocol  # a name, or several
    if not _OBJECT_STORES.isdisjoint([protocol] if isinstance(protocol, str) else protocol):
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
