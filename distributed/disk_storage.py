"""The run folder on a disk as Ray sees it: files that appear whole, and a full disk in one line.

Ray's own way truncates the list of checkpoints before it writes it anew, so that a full disk, or
a driver that dies between the two, leaves a run that cannot be resumed.
"""

import os
import secrets
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pyarrow import PythonFile
from pyarrow.fs import FSSpecHandler

from vgse.disk import room_for


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
