"""Loader processes hold what loading needs, and nothing of the training process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lean_probe import HEAVY

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import scipy.sparse
print("this script runs")
from lean_probe import Probe
from shards.lean import lean_context
from torch.utils.data import DataLoader
context = lean_context("")
for found in DataLoader(Probe(), batch_size=None, num_workers=1, multiprocessing_context=context):
    print(found)
"""
KILLED = """
import os, signal, sys
from lean_probe import Forever
from shards.lean import BeginLoader, lean_context
from torch.utils.data import DataLoader
os.environ["ADDRESS"] = "here"
loader = DataLoader(
    Forever(),
    batch_size=None,
    num_workers=1,
    multiprocessing_context=lean_context(""),
    worker_init_fn=BeginLoader({**os.environ, "ADDRESS": "there"}),
)
batches = iter(loader)
print(next(batches), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
GUARDED = """
import scipy.sparse
print("this script runs")
from lean_probe import Probe
from torch.utils.data import DataLoader
if __name__ == "__main__":
    for found in DataLoader(
        Probe(), batch_size=None, num_workers=1, multiprocessing_context="forkserver"
    ):
        print(found)
"""


def run(script: str, folder: Path, code: int = 0) -> list[str]:
    """Lines that a script prints, which stands and runs in another folder than the packages."""
    path = folder / "train.py"
    places = [str(ROOT), *(str(ROOT / "tests" / "support" / part) for part in ("data", "services"))]
    first = f"import sys; sys.path[:0] = {places!r}\n"
    path.write_text(first + script)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    said, failed = folder / "said", folder / "failed"
    # Files, not pipes: a process left behind would hold a pipe open.
    with said.open("w") as out, failed.open("w") as err:
        command = [sys.executable, str(path)]
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=out, stderr=err, check=False
        )
    assert done.returncode == code, failed.read_text()
    return said.read_text().splitlines()


def test_importing_what_a_loader_needs_imports_nothing_heavy() -> None:
    heavy = [*HEAVY, "s3fs", "webdataset", "jsonargparse", "rich", "numba"]
    code = f"import sys, shards.loader; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_loader_process_does_not_run_the_training_script_again(tmp_path: Path) -> None:
    lines = run(SCRIPT, tmp_path)
    assert lines[0] == "this script runs" and len(lines) == 2
    assert lines[1].split() == ["end"]  # no SciPy, though the script imports it


def test_a_usual_process_would_have_been_seen_to(tmp_path: Path) -> None:
    lines = run(GUARDED, tmp_path)
    assert lines.count("this script runs") == 2 and lines[-1].split() == ["scipy", "end"]


def test_a_loader_process_has_the_environment_of_its_start_and_ends_with_its_trainer(
    tmp_path: Path,
) -> None:
    (line,) = run(KILLED, tmp_path, code=-signal.SIGKILL)
    pid, server, address = line.split()
    assert address == "there"
    for _ in range(100):
        if not alive(pid) and not alive(server):
            return
        time.sleep(0.1)
    raise AssertionError("a loader process outlives its trainer")


def alive(pid: str) -> bool:
    status = Path("/proc", pid, "stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
