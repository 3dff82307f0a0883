"""Files that are written whole or not at all, and folders that one process uses at a time."""

import codecs
import errno
import json
import math
import multiprocessing.util
import os
import secrets
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import fsspec
import numpy as np
import yaml
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from vgse.errors import UserError

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
_WORDS = ("No space left on device", "Disk quota exceeded")  # of libraries without a number


def is_full(error: BaseException) -> bool:
    """Whether a disk, or a user's share of it, was full."""
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    return not isinstance(error, UserError) and any(words in str(error) for words in _WORDS)


@contextmanager
def disk_errors_in_one_line(path: str | Path) -> Iterator[None]:
    """A full disk, or one that cannot be written, is a UserError that names `path`."""
    try:
        yield
    except Exception as error:  # libraries raise errors of their own
        if isinstance(error, OSError) and error.errno in _CLOSED:
            raise UserError(
                f"{error.filename or path}: cannot be used ({error.strerror}); choose another "
                "folder, or change its permissions"
            ) from error
        if not is_full(error):
            raise
        raise UserError(
            f"{Path(path).parent}: no space left on its disk (writing {Path(path).name}); "
            "free some, then run the same command again"
        ) from error


LOCK = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Hold a folder, by an empty file in it, until the block or this process ends.

    UserError where another process holds it, here or on another machine that shares the disk. File
    systems that know no locks hold nobody off.
    """
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    try:
        with disk_errors_in_one_line(folder / LOCK):
            lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{folder}: another process is at work here; wait until it ends, or choose another name"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A binary file that is on its disk as `path` once it is complete; not at all on an error."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with disk_errors_in_one_line(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # of a file system that takes no folders
            raise OSError(errno.EPERM, "no folder can be made there", error.filename) from None
        try:
            with open(partial, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())  # or a power cut could leave the name without the bytes
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


_LONGEST_SOCKET = 107  # bytes of its path


def folder_for_sockets(given: str, below: str) -> str | None:
    """A folder for temporary files if a socket at `given` + `below` had too long a path, as where
    batch systems set TMPDIR; None if it has not."""
    room = _LONGEST_SOCKET - len(below)
    if len(os.fsencode(given.rstrip("/"))) <= room:
        return None
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise UserError(
        f"TMPDIR is {given}, too long for sockets below it; set it to a folder whose path has "
        f"{room} characters at most"
    )


def keep_sockets_short() -> None:
    """Give multiprocessing a folder for the sockets of this process and its children, where TMPDIR
    is too long for them."""
    if folder := folder_for_sockets(tempfile.gettempdir(), "/pymp-01234567/listener-01234567"):
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            multiprocessing.util.get_temp_dir()  # made once, and handed on
        finally:
            tempfile.tempdir = before


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as indented JSON; NaN and infinity, which JSON lacks, become null."""
    text = json.dumps(_finite(content), indent=1, allow_nan=False)
    with written_whole(path) as stream:
        stream.write(f"{text}\n".encode())


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes `arrays` as compressed .npz; strings become fixed-width arrays, never objects."""
    ready = {name: np.asarray(array) for name, array in arrays.items()}
    assert all(array.dtype != object for array in ready.values()), "objects would need pickle"
    with written_whole(path) as stream:
        # numpy's stubs take the names of arrays for its own keywords.
        np.savez_compressed(stream, **ready)  # type: ignore[arg-type]


_BYTE_ORDER_MARKS = {  # the longer ones first: one of UTF-32 begins as one of UTF-16 does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decode_text(data: bytes, path: str | Path) -> str:
    """The text of a file that a user wrote: UTF-8, or what its byte order mark says."""
    marks = _BYTE_ORDER_MARKS.items()
    encoding = next((name for mark, name in marks if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: is not {encoding.removesuffix('-sig').upper()} "
            f"({error.reason}); save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line}: holds zero bytes; save the file as plain UTF-8 text")
    return text


def read_text(path: str | Path, *, remedy: str = "correct the path") -> str:
    """The text of a file that a user wrote, local or at any fsspec URL, compressed or not, its
    letters composed (NFC: an e with an accent is one sign, as in names of classes)."""
    try:
        with fsspec.open(str(path), "rb", compression="infer") as stream:
            data: bytes = stream.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (OSError, EOFError, ImportError, BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); {remedy}") from None
    return unicodedata.normalize("NFC", decode_text(data, path))


def read_mapping(path: Path, *, remedy: str = "correct it") -> dict[str, Any]:
    """The fields of a .json or .yaml file; none where it is empty or not there."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason}); {remedy}") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path}: is not a mapping of fields; {remedy}")
    return content or {}


def read_arrays(
    file: Path | BinaryIO,
    *names: str,
    also: Sequence[str] = (),
    remedy: str = "make it again",
    name: str = "",
) -> dict[str, NDArray[Any]]:
    """The arrays `names` of an .npz file, and those of `also` that are there, or all; UserError
    where the file or one of `names` is missing. An open file is called `name`."""
    path = name or file
    try:
        with np.load(file, allow_pickle=False) as archive:
            there = list(archive.files)
            arrays = {name: archive[name] for name in (*names, *also) or there if name in there}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a folder that holds it") from None
    except (OSError, EOFError, ValueError, BadZipFile, zlib.error, AttributeError, TypeError):
        # ValueError: objects, or no numpy file at all; the last two: .npy in place of .npz.
        raise UserError(f"{path}: is not a readable .npz of plain arrays; {remedy}") from None
    missing = [name for name in names if name not in there]
    if missing:
        raise UserError(
            f"{path}: holds no {', '.join(missing)}, only {', '.join(there)}; write the file again"
        )
    return arrays
