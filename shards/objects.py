"""Bytes from local folders and from any fsspec URL, by ranged reads that are tried again.

S3 takes its address, credentials and region from where AWS's own tools take them, such as
AWS_ENDPOINT_URL (for other stores than Amazon's), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
and AWS_REGION; any option of any fsspec store can be set in fsspec's own configuration.
"""

import errno
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec

from vgse.errors import UserError

Result = TypeVar("Result")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What another attempt cannot change.
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")
_CODES = (errno.EINVAL, errno.EPERM, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Retry:
    """How often a read is tried; the waits between attempts double up to longest_wait_s, each
    shortened by chance, by up to a half, so that readers do not come back all at once."""

    attempts: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 10.0


@dataclass(frozen=True)
class Access:
    """How remote shards are read; local ones need none of it."""

    retry: Retry = Retry()
    ahead: int = 2  # chunks (of about 4 MB) that are fetched in the background, at most
    cache: str | None = None  # local folder for whole shards, shared by all runs of a machine
    cache_bytes: int | None = None  # above it the cache forgets what was not used for longest


RETRY = Retry()
FIRST = Retry(attempts=4)  # of what is read before a run begins: someone is waiting
PATIENT = Retry(attempts=20)  # within a run: sees a store through more than a minute's absence
ACCESS = Access()


def with_retries(work: Callable[[], Result], url: str, what: str, retry: Retry) -> Result:
    """The result of `work`, which is called again after an error that may pass; other errors than
    FileNotFoundError become a UserError that says what (such as "read") cannot be done."""
    started = time.monotonic()
    for number in range(1, retry.attempts + 1):
        try:
            return work()
        except FileNotFoundError:
            raise
        except Exception as error:  # every store raises errors of its own
            code, times = getattr(error, "errno", None), ""
            if code in FULL:
                remedy = "free space on this node's disk, or choose another folder"
            elif (
                isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES or code in _CODES
            ):
                remedy = (
                    "check the address and the credentials (for S3: AWS_ENDPOINT_URL, "
                    "AWS_ACCESS_KEY_ID …)"
                )
            elif number == retry.attempts:
                times = f", {retry.attempts} attempts in {time.monotonic() - started:.1f} s"
                remedy = (
                    "check the network and the store's address, then run the same command again"
                )
            else:
                time.sleep(wait_before(number, retry))
                continue
            message = f"{url}: cannot be {what}{times} ({one_line(error)}); {remedy}"
            raise UserError(message) from error
    raise AssertionError("a Retry has at least one attempt")


def wait_before(number: int, retry: Retry) -> float:
    """Seconds before attempt `number` + 1."""
    longest = min(retry.longest_wait_s, retry.first_wait_s * 2.0 ** (number - 1))
    # Not the shared generator: a retry must not change what a run draws.
    return longest * random.SystemRandom().uniform(0.5, 1.0)


def one_line(error: BaseException) -> str:
    """Kind and text of an error."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_remote(url: str) -> bool:
    """Whether `url` names a scheme other than a local file."""
    return "://" in url and not url.startswith("file://")


def join_url(folder: str, name: str) -> str:
    """The address of `name` in `folder`."""
    return f"{folder.rstrip('/')}/{name}"


def read_bytes(url: str, start: int = 0, stop: int | None = None, *, retry: Retry = RETRY) -> bytes:
    """Bytes start to stop of a file, in one read or one ranged request: of a remote one exactly
    those (a cut answer is asked for again), of a local one as many of them as there are."""
    if not is_remote(url):
        try:
            with open(url.removeprefix("file://"), "rb") as file:
                file.seek(start)
                return file.read(-1 if stop is None else stop - start)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(f"{url}: cannot be read ({error.strerror})") from error
    filesystem, path = open_filesystem(url)

    def fetch() -> bytes:
        ranged = start > 0 or stop is not None
        data: bytes = filesystem.cat_file(path, start=start if ranged else None, end=stop)
        if stop is not None and len(data) != stop - start:
            raise EOFError(f"{len(data)} bytes instead of {stop - start}; copied in part?")
        return data

    return with_retries(fetch, url, "read", retry)


def file_sizes(folder: str, *, retry: Retry = RETRY, missing_ok: bool = False) -> dict[str, int]:
    """Length in bytes of every file directly in `folder`, by name, with one listing."""
    try:
        return _remote_sizes(folder, retry) if is_remote(folder) else _local_sizes(folder)
    except (FileNotFoundError, NotADirectoryError):
        if missing_ok:
            return {}
        raise UserError(f"{folder}: no such folder or bucket; correct the address") from None


def _local_sizes(folder: str) -> dict[str, int]:
    def look(items: list[os.DirEntry[str]]) -> dict[str, int]:
        sizes = {}
        for item in items:
            with suppress(FileNotFoundError):  # others rename their files here
                if item.is_file():
                    sizes[item.name] = item.stat().st_size
        return sizes

    with os.scandir(folder.removeprefix("file://")) as entries:
        items = list(entries)
    chunks = [items[start : start + 256] for start in range(0, len(items), 256)]
    # Of a network's file system the answers are waited for, most of the time.
    with ThreadPoolExecutor(32) as pool:
        return {name: size for part in pool.map(look, chunks) for name, size in part.items()}


def _remote_sizes(folder: str, retry: Retry) -> dict[str, int]:
    filesystem, path = open_filesystem(folder)

    def fetch() -> list[dict[str, Any]]:
        filesystem.invalidate_cache()  # a store remembers listings, a folder changes
        return list(filesystem.ls(path, detail=True))

    rows = with_retries(fetch, folder, "listed", retry)
    return {row["name"].rsplit("/", 1)[-1]: row["size"] for row in rows if row["type"] == "file"}


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and what the URL is called there."""
    scheme = url.split("::")[-1].split("://")[0]
    is_s3 = scheme in ("s3", "s3a")
    options: dict[str, Any] = {}
    if is_s3:
        # The user's own, less the retries of two layers below that would multiply ours.
        own = dict(fsspec.config.conf.get(scheme, {}))
        retries = {"retries": {"max_attempts": 0}, **own.get("config_kwargs", {})}
        options = {scheme: {**own, "config_kwargs": retries}}
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        missing = "; pip install 'vgse[s3]'" if is_s3 else "; install the package it names"
        remedy = missing if isinstance(error, ImportError) else ""
        raise UserError(f"{url}: {one_line(error)}{remedy}") from None
    if is_s3:
        filesystem.retries = 1
    return filesystem, path
