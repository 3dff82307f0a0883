"""A real Ray head on loopback with token authentication, in a folder of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from processes import descendants, title

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Head:
    """A running head, and a checkout to submit from."""

    address: str
    folder: Path
    checkout: Path
    env: dict[str, str]

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start `python -m distributed` in the checkout."""
        return subprocess.Popen(
            [sys.executable, "-m", "distributed", *arguments],
            cwd=self.checkout,
            env=self.env if env is None else env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of `python -m distributed`."""
        process = self.start(*arguments, env=env)
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err


def copy_checkout(target: Path) -> None:
    """The packages of this checkout as a git checkout of their own, with a command `tune`."""
    for name in ("distributed", "shards", "vgse"):
        ignored = shutil.ignore_patterns("__pycache__", "*.nb?")
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    (target / "tune").mkdir()
    (target / ".gitignore").write_text("__pycache__/\ndata/\nignored.txt\n")
    subprocess.run(["git", "init", "-q", str(target)], check=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def ray_head() -> Iterator[Head]:
    """Start a head, and end its processes afterwards: no other Ray of this machine."""
    folder = Path(tempfile.mkdtemp(prefix="vg", dir="/tmp"))  # a short path: sockets lie below it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{env['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # busy neighbours are no fault of the run
        "RAY_worker_niceness": "0",
        "PYTHONUNBUFFERED": "1",
    }
    gcs, dashboard, client, agent = free_ports(4)
    command = ["ray", "start", "--head", "--block", f"--port={gcs}", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}"]  # another Ray may have the usual one
    command += [f"--temp-dir={folder / 'r'}", "--disable-usage-stats", "--num-gpus=0"]
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(
        command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait(dashboard, process, folder)
        copy_checkout(folder / "code")
        yield Head(f"http://127.0.0.1:{dashboard}", folder, folder / "code", env)
    finally:
        end(process, patience=10)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def end(process: "subprocess.Popen[bytes]", *, patience: float) -> None:
    """End a `ray start --block` and, after some seconds, what is left of all it started."""
    own = descendants(process.pid)
    process.send_signal(signal.SIGTERM)  # --block ends what it started
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=patience)
    for pid, command in own.items():
        if title(pid) == command:  # else the number serves another process by now
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(600):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        assert process.poll() is None, (folder / "head.log").read_text()
        time.sleep(0.2)
    raise AssertionError((folder / "head.log").read_text())
