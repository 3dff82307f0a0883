"""A Ray cluster of several nodes on this machine, whose nodes can be lost.

It lives in a process of its own, told what to do by lines on its standard input: `add` adds a node
of one CPU, `lose` takes the oldest away without a farewell, the end of input ends all.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATIENCE_S = 200


@dataclass
class Nodes:
    """The cluster, and the environment in which its token is known."""

    address: str
    env: dict[str, str]
    process: subprocess.Popen[str]
    log: Path

    def _do(self, what: str) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n", self.log.read_text()[-3000:]

    def add(self) -> None:
        """Add a node of one CPU, and wait for it."""
        self._do("add")

    def lose(self) -> None:
        """Kill the node that was added first among those that are left."""
        self._do("lose")


@contextmanager
def ray_nodes(count: int) -> Iterator[Nodes]:
    """A head without CPUs and `count` nodes of one CPU each."""
    folder = Path(tempfile.mkdtemp(prefix="vn", dir="/tmp"))  # a short path: sockets lie below it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text("fedcba9876543210" * 4)
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
        "RAY_agent_register_timeout_ms": str(_PATIENCE_S * 1000),  # a node else ends itself
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout
        nodes = Nodes(process.stdout.readline().strip(), env, process, log)
        for _ in range(count):
            nodes.add()
        yield nodes
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Ray prints too
    from ray._private import services
    from ray.cluster_utils import Cluster

    plain = services.get_node

    def patient(*arguments: Any) -> Any:
        """Ray itself gives a node half a minute, which a busy machine does not."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return plain(*arguments)
            except RuntimeError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    services.get_node = patient
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    left = []
    print(cluster.address, file=answers)
    for line in sys.stdin:
        if line == "add\n":
            left.append(cluster.add_node(num_cpus=1, wait=False))
            cluster.wait_for_nodes(timeout=_PATIENCE_S)
        else:
            cluster.remove_node(left.pop(0), allow_graceful=False)
        print("done", file=answers)
    cluster.shutdown()


if __name__ == "__main__":
    _serve()
