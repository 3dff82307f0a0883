"""The run folder as Ray sees it: our store and its options, with calls that are tried again; Ray
itself takes the first failed call for the run's end."""

import os
import secrets
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pyarrow import PythonFile
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FSSpecHandler, PyFileSystem

from distributed import storage
from shards.objects import PATIENT, Retry, is_remote, open_filesystem, with_retries
from vgse.files import disk_errors_in_one_line


def ray_storage(folder: str) -> tuple[str, FileSystem]:
    """`storage_path` and `storage_filesystem` of Ray's RunConfig for a folder or URL."""
    path = open_filesystem(folder)[1] if is_remote(folder) else folder
    return path, PyFileSystem(StoreHandler(folder))


class StoreHandler(FSSpecHandler):
    """Files appear whole, a store's calls are tried again. It travels as a URL: every node opens
    the store with credentials of its own environment."""

    def __init__(self, url: str, retry: Retry = PATIENT) -> None:
        super().__init__(open_filesystem(url)[0] if is_remote(url) else LocalFileSystem())
        self.url, self.retry = url, retry

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreHandler, (self.url, self.retry)

    def _retried(self, work: Callable[[Any], Any], given: Any, path: str, what: str) -> Any:
        if not is_remote(self.url):
            return work(given)

        def once() -> Any:
            self.fs.invalidate_cache()  # workers and controller write in turn
            return work(given)

        return with_retries(once, self.fs.unstrip_protocol(path), what, self.retry)

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        """Kind and size of files and folders."""
        return self._retried(super().get_file_info, paths, paths[0], "looked up") if paths else []

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        """What a folder holds."""
        return self._retried(super().get_file_info_selector, selector, selector.base_dir, "listed")

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a folder on a disk; in a store they come with their files."""
        if not is_remote(self.url):
            with disk_errors_in_one_line(path):
                os.makedirs(path, exist_ok=True)

    def delete_dir(self, path: str) -> None:
        """Delete a folder and all it holds."""
        self._retried(super().delete_dir, path, path, "deleted")

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        self._retried(super().delete_file, path, path, "deleted")

    def open_input_stream(self, path: str) -> PythonFile:
        """A file to read; one in a store as a local copy that is gone when closed."""
        if not is_remote(self.url):
            return PythonFile(open(path, "rb"), mode="r")
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "copy"
            storage.download_file(self.fs.unstrip_protocol(path), local, retry=self.retry)
            return PythonFile(open(local, "rb"), mode="r")

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        """A file to write, which takes its place when closed."""
        if not is_remote(self.url):
            part = Path(path).with_name(f".{Path(path).name}.{secrets.token_hex(4)}.partial")
            return PythonFile(_Outgoing(part, path, os.replace), mode="w")
        handle, name = tempfile.mkstemp(prefix="vgse-out-")
        os.close(handle)
        put = partial(storage.upload_file, retry=self.retry)
        return PythonFile(_Outgoing(Path(name), self.fs.unstrip_protocol(path), put), mode="w")


class _Outgoing:
    """A local file that is put at its target when it is closed, unless a write failed."""

    def __init__(self, part: Path, target: str, put: Callable[[Path, str], None]) -> None:
        self._part, self._target, self._put = part, target, put
        self._broken = False
        with self._disk_errors():
            self._file = part.open("wb")
        self.tell, self.flush = self._file.tell, self._file.flush

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors_in_one_line(self._part if is_remote(self._target) else self._target)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: Any) -> int:
        try:
            with self._disk_errors():
                return self._file.write(data)
        except BaseException:
            self._broken = True  # and Arrow does not always close it
            self._part.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        if self.closed:
            return
        try:
            with self._disk_errors():
                self._file.close()
                if not self._broken:
                    self._put(self._part, self._target)
        finally:
            self._part.unlink(missing_ok=True)
