"""Bytes from local folders and from any fsspec URL."""

import os
from pathlib import Path
from typing import Any

import fsspec


def is_remote(url: str) -> bool:
    """Whether `url` names a scheme other than a local file."""
    return "://" in url and not url.startswith("file://")


def join(folder: str, name: str) -> str:
    """The address of `name` in `folder`."""
    return f"{folder.rstrip('/')}/{name}"


def read(url: str, start: int = 0, stop: int | None = None) -> bytes:
    """Bytes start to stop of a file, in one read or one ranged request.

    Raises FileNotFoundError if there is none, ValueError if the store cannot be reached.
    """
    if not is_remote(url):
        try:
            with open(url.removeprefix("file://"), "rb") as file:
                file.seek(start)
                return file.read(-1 if stop is None else stop - start)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ValueError(f"{url}: cannot be read ({error.strerror})") from error
    filesystem, path = _open(url)
    try:
        data: bytes = filesystem.cat_file(path, start=start or None, end=stop)
    except FileNotFoundError:
        raise
    except Exception as error:  # every store raises errors of its own
        raise ValueError(f"{url}: cannot be read ({_short(error)})") from error
    return data


def sizes(folder: str) -> dict[str, int]:
    """Length in bytes of every file directly in `folder`, by name, with one listing."""
    if not is_remote(folder):
        path = Path(folder.removeprefix("file://"))
        return {item.name: item.stat().st_size for item in os.scandir(path) if item.is_file()}
    filesystem, path_ = _open(folder)
    try:
        rows = filesystem.ls(path_, detail=True)
    except Exception as error:  # every store raises errors of its own
        raise ValueError(f"{folder}: cannot be listed ({_short(error)})") from error
    return {row["name"].rsplit("/", 1)[-1]: row["size"] for row in rows if row["type"] == "file"}


def _open(url: str) -> tuple[Any, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url}: {_short(error)}") from None
    return filesystem, path


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
