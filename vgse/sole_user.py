"""A folder that one process at a time writes to."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vgse.disk import room_for

LOCK = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Hold a folder, by an empty file in it, until the block or this process ends.

    File systems that know no locks hold nobody off.

    Raises:
        ValueError: another process holds it, here or on another machine that shares the disk.
    """
    path = folder / LOCK
    with room_for(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                raise ValueError(
                    f"{folder}: another process is at work here; wait until it ends, or choose "
                    "another name"
                ) from None
        yield
    finally:
        os.close(handle)
