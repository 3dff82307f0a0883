"""The processes below one, with what they run."""

from contextlib import suppress
from pathlib import Path

from benchmarks import turns


def title(pid: int) -> str:
    """The command line of a process; empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return ""


def descendants(pid: int) -> dict[int, str]:
    """All processes below one with their command lines, parents first."""
    return {one: title(one) for one in turns.descendants(pid)[1:]}
