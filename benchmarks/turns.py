"""Let process trees share a machine in turns: while one runs, all others are stopped.

What slows the machine for a while slows all of them alike, which runs one after the other do not
give. Linux alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tree:
    """A command with all processes below it, and when it ran (time.perf_counter's seconds)."""

    process: subprocess.Popen[bytes]
    turns: list[tuple[float, float]] = field(default_factory=list)
    used: list[dict[str, float]] = field(default_factory=list)
    """After each turn the CPU seconds that every process has used, by number and command line."""

    def seconds(self, start: float, stop: float) -> float:
        """Seconds between two times in which it ran."""
        return sum(max(0.0, min(stop, b) - max(start, a)) for a, b in self.turns)


def descendants(pid: int) -> list[int]:
    """A process and all below it, parents first."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The name, in brackets, may hold spaces and brackets.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += below.get(one, [])
    return found


def _used(pid: int) -> tuple[str, float]:
    """A process's number and command line, and its CPU seconds; 0 once it is gone."""
    with suppress(OSError):
        title = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return f"{pid} {title}", ticks / os.sysconf("SC_CLK_TCK")
    return str(pid), 0.0


def take_turns(trees: dict[str, Tree], seconds: float) -> None:
    """Run commands that were started, each for some seconds at a time, until all have ended.

    Raises:
        subprocess.CalledProcessError: one of them failed; the others are killed.
    """
    for tree in trees.values():
        _stop(tree)
    try:
        while waiting := [tree for tree in trees.values() if tree.process.poll() is None]:
            for tree in waiting:
                _turn(tree, seconds)
        for tree in trees.values():
            if tree.process.returncode:
                raise subprocess.CalledProcessError(tree.process.returncode, tree.process.args)
    finally:
        for tree in trees.values():
            if tree.process.poll() is None:
                _send(signal.SIGKILL, descendants(tree.process.pid))


def _turn(tree: Tree, seconds: float) -> None:
    began = time.perf_counter()
    _send(signal.SIGCONT, descendants(tree.process.pid))
    with suppress(subprocess.TimeoutExpired):
        tree.process.wait(seconds)
    _stop(tree)
    tree.turns.append((began, time.perf_counter()))
    tree.used.append(dict(map(_used, descendants(tree.process.pid))))


def _stop(tree: Tree) -> None:
    """Stop a tree; what is started meanwhile is found in another look."""
    stopped: set[int] = set()
    while tree.process.poll() is None:
        new = [pid for pid in descendants(tree.process.pid) if pid not in stopped]
        if not new:
            return
        _send(signal.SIGSTOP, new)
        stopped.update(new)


def _send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
