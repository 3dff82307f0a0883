"""A disk that is full, or closed to us, told in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
_WORDS = ("No space left on device", "Disk quota exceeded")  # of libraries without a number


def is_full(error: BaseException) -> bool:
    """Whether a disk, or a user's share of it, was full."""
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    return not isinstance(error, ValueError) and any(words in str(error) for words in _WORDS)


@contextmanager
def room_for(path: str | Path) -> Iterator[None]:
    """Whatever is written inside goes to the disk of `path`.

    Raises:
        ValueError: that disk is full, or takes no files from this user; one line with the folder
            and the remedy.
    """
    try:
        yield
    except Exception as error:  # libraries raise errors of their own
        if isinstance(error, OSError) and error.errno in _CLOSED:
            raise ValueError(
                f"{error.filename or path}: cannot be used ({error.strerror}); choose another "
                "folder, or change its permissions"
            ) from error
        if not is_full(error):
            raise
        raise ValueError(
            f"{Path(path).parent}: no space left on its disk (writing {Path(path).name}); "
            "free some, then run the same command again"
        ) from error
