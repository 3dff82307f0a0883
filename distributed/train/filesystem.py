"""The run folder as Ray sees it: the same store as ours, with calls that are tried again.

Ray itself takes the first failed call for the run's end, and its own S3 client takes other
options than fsspec's.
"""

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem
from pyarrow import PythonFile
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FSSpecHandler, PyFileSystem

from distributed import storage
from shards.objects import PATIENT, Retry, is_remote, open_filesystem, with_retries
from vgse.files import room_for


class DiskHandler(FSSpecHandler):
    """What Ray does to a folder of this machine or of a shared disk."""

    def __init__(self) -> None:
        super().__init__(LocalFileSystem())

    def __reduce__(self) -> tuple[Any, ...]:
        return DiskHandler, ()

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a folder; one that is there is left as it is."""
        with room_for(path):
            os.makedirs(path, exist_ok=True)

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        """A file to write, which appears when it is closed."""
        return PythonFile(_Partial(Path(path)), mode="w")


class _Partial:
    """A file beside its place, which takes it when closed, unless a write failed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with room_for(path):
            self._file = self._part.open("xb")
        self._broken = False

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: Any) -> int:
        try:
            with room_for(self._path):
                return self._file.write(data)
        except BaseException:
            self._broken = True  # and Arrow does not always close it
            self._part.unlink(missing_ok=True)
            raise

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        with room_for(self._path):
            self._file.flush()

    def close(self) -> None:
        if self.closed:
            return
        try:
            with room_for(self._path):
                self._file.close()
                if not self._broken:
                    os.replace(self._part, self._path)
        finally:
            self._part.unlink(missing_ok=True)


Result = TypeVar("Result")


def ray_storage(folder: str) -> tuple[str, FileSystem]:
    """`storage_path` and `storage_filesystem` of Ray's RunConfig for a folder or URL."""
    if not is_remote(folder):
        return folder, PyFileSystem(DiskHandler())
    return open_filesystem(folder)[1], PyFileSystem(StoreHandler(folder))


class StoreHandler(FSSpecHandler):
    """What Ray does to a store, each call tried again.

    It travels as a URL: every node opens the store with credentials of its own environment.
    """

    def __init__(self, url: str, retry: Retry = PATIENT) -> None:
        super().__init__(open_filesystem(url)[0])
        self.url = url
        self.retry = retry

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreHandler, (self.url, self.retry)

    def _retried(self, work: Callable[[], Result], path: str, what: str) -> Result:
        def once() -> Result:
            self.fs.invalidate_cache()  # workers and controller write in turn
            return work()

        return with_retries(once, self.fs.unstrip_protocol(path), what, self.retry)

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        """Kind and size of files and folders."""
        get = super().get_file_info
        return self._retried(lambda: get(paths), paths[0], "looked up") if paths else []

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        """What a folder holds."""
        get = super().get_file_info_selector
        return self._retried(lambda: get(selector), selector.base_dir, "listed")

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: folders come with their files, and a bucket must be there."""

    def delete_dir(self, path: str) -> None:
        """Delete a folder and all it holds."""
        delete = super().delete_dir
        self._retried(lambda: delete(path), path, "deleted")

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        delete = super().delete_file
        self._retried(lambda: delete(path), path, "deleted")

    def open_input_stream(self, path: str) -> PythonFile:
        """A file to read, as a local copy that is gone when closed."""
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "copy"
            storage.download_file(self.fs.unstrip_protocol(path), local, retry=self.retry)
            return PythonFile(open(local, "rb"), mode="r")

    def open_input_file(self, path: str) -> PythonFile:
        """As `open_input_stream`."""
        return self.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        """A file to write, which is sent whole when closed."""
        return PythonFile(_Outgoing(self.fs.unstrip_protocol(path), self.retry), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> PythonFile:
        """Never: stores cannot append, and Ray does not."""
        raise NotImplementedError("append")


class _Outgoing:
    """A local file that goes to the store when it is closed, unless a write failed."""

    def __init__(self, url: str, retry: Retry) -> None:
        self._url = url
        self._retry = retry
        self._file = tempfile.NamedTemporaryFile(prefix="vgse-out-")  # noqa: SIM115
        self._broken = False

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def write(self, data: Any) -> int:
        try:
            with room_for(self._file.name):
                return self._file.write(data)
        except BaseException:
            self._broken = True
            raise

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        if self.closed:
            return
        try:
            with room_for(self._file.name):
                self._file.flush()
            if not self._broken:
                storage.upload_file(Path(self._file.name), self._url, retry=self._retry)
        finally:
            self._file.close()
