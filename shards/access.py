"""How shards are read from a store: how often again, how far ahead, and whether to keep them."""

import errno
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")

# What another attempt cannot change.
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")
_FINAL_NUMBERS = (errno.EINVAL, errno.EPERM, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Retry:
    """How often a read is tried, and how long it waits between attempts.

    The waits double from first_wait_s up to longest_wait_s, each shortened by chance to
    between a half and the whole, so that many readers do not come back at the same moment.
    """

    attempts: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_wait_s < 0 or self.longest_wait_s < 0:
            raise ValueError(f"{self}: attempts must be at least 1, and waits 0 or more seconds")


@dataclass(frozen=True)
class Access:
    """How remote shards are read; local ones need none of it.

    Attributes:
        retry: what happens when a read fails.
        ahead: chunks (of about 4 MB) that are fetched in the background, at most.
        cache: local folder that keeps whole shards, shared by all runs of a machine; None
            streams them.
        cache_bytes: size above which the cache forgets what was not used for longest.
    """

    retry: Retry = Retry()
    ahead: int = 2
    cache: str | None = None
    cache_bytes: int | None = None


RETRY = Retry()
FIRST = Retry(attempts=4)  # of what is read before a run begins: someone is waiting
PATIENT = Retry(attempts=20)  # within a run: sees a store through more than a minute's absence
ACCESS = Access()


def attempt(work: Callable[[], Result], url: str, what: str, retry: Retry) -> Result:
    """The result of `work`, which is called again after an error that may pass.

    FileNotFoundError goes through as it is. Raises ValueError in one line, with the URL and
    the remedy, for what cannot pass and after the last attempt.
    """
    started = time.monotonic()
    for number in range(retry.attempts):
        try:
            return work()
        except FileNotFoundError:
            raise
        except Exception as error:  # every store raises errors of its own
            if getattr(error, "errno", None) in FULL:
                raise ValueError(f"{url}: cannot be {what} ({short(error)}); {ROOM}") from error
            if _is_final(error):
                raise ValueError(f"{url}: cannot be {what} ({short(error)}); {HINT}") from error
            if number + 1 == retry.attempts:
                seconds = time.monotonic() - started
                raise ValueError(
                    f"{url}: cannot be {what}, {retry.attempts} attempts in {seconds:.1f} s "
                    f"({short(error)}); check the network and the store's address, "
                    "then run the same command again"
                ) from error
        time.sleep(wait_before(number + 1, retry))
    raise AssertionError("a Retry has at least one attempt")


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROOM = "free space on this node's disk, or choose another folder"
HINT = "check the address and the credentials (for S3: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID …)"


def wait_before(number: int, retry: Retry) -> float:
    """Seconds before attempt `number` + 1."""
    longest = min(retry.longest_wait_s, retry.first_wait_s * 2.0 ** (number - 1))
    # Not the shared generator: a retry must not change what a run draws.
    return longest * random.SystemRandom().uniform(0.5, 1.0)


def short(error: BaseException) -> str:
    """Kind and text of an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_final(error: Exception) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    return (
        isinstance(error, _FINAL)
        or type(error).__name__ in _FINAL_NAMES
        or number in _FINAL_NUMBERS
    )
