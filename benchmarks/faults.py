"""What happens to a run when something breaks: the fault tests, and docs/faults.md from them.

    python -m benchmarks.faults [--log FILE] [--only-write]

Runs the tests that break things (about half an hour on two free cores), each of which adds a line
to the log, and writes the page from the log. A fault that is in the log twice is shown as it was
the last time.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "faults.md"
TESTS = sorted(path.name for path in (ROOT / "tests" / "faults").glob("test_faults_*.py"))
FAULTS = [  # as the tests record them, in the order of the page
    "a worker is killed (SIGKILL)",
    "a node is lost and replaced",
    "a node is lost and not replaced; later the same command",
    "elastic: a node is lost, later one is added",
    "a node is lost while features are computed",
    "a node is lost while images are embedded",
    "the driver and its Ray are killed; the same command",
    "a job is stopped and submitted again",
    "the run folder's disk is full in training, and again when results are written; each time the "
    "same command when there is room",
    "shards in a bucket that does not answer for 60 s",
    "shards in a bucket that does not come back; the same command later",
    "pictures are overwritten in the middle of training",
    "shards are cut short in the middle of training",
    "240 of 296 pictures are truncated before the run",
    "the same run id with another learning rate",
]
HEAD = """# What happens when something breaks

Made by `python -m benchmarks.faults` from what the fault tests saw
(tests/faults/test_faults_*.py and test_resume.py, `pytest -m slow`): each breaks a run of a tiny
data set on purpose and compares its class embeddings with those of a run that nothing happened to.

Lines are what the terminal shows, with folders shortened to `…`. "Time lost" is wall time beyond
the uninterrupted run, the new start of Ray and Python included. These runs train for seconds, so it
is nearly all start-up, which on a machine that does other work takes minutes and varies as much.
What a long run loses is the same start, and the steps since its last checkpoint.

{machine}

| fault | what the user sees | time lost | largest difference of a class embedding |
| --- | --- | --- | --- |
"""
NOTES = """
## What to know

- **Restarts.** Lost workers and nodes are replaced by Ray up to `cluster.max_failures` times; what
  starting again would only repeat (a full disk, damaged data, a store that stays away, a loss that
  is not finite, a GPU's memory that does not hold a step) ends the run at once, with one line and
  exit status 2. The same command goes on from the last checkpoint.
- **Checkpoints** are made every `training.checkpoint_epochs` epochs and `checkpoint_steps` steps,
  uploaded while training goes on, and committed once they are whole; `checkpoints_kept` of them
  stay. Files appear under their name only when they are complete, and what an interrupted upload
  left behind is deleted when the run goes on.
- **The same number of workers** gives the same batches, so the difference above is rounding at
  most. **Elastic runs** (`cluster.min_workers`) change that number: each image is still read once
  an epoch and `batch_size` still counts the images of all workers, but other images share a batch,
  so the result is that of another shuffle, not the same to the last digit.
- **A lost node** is waited for `cluster.wait_for_workers` seconds. An elastic run goes on with
  fewer workers as soon as Ray has noticed the loss (up to 20 s more), and looks every
  `cluster.resize_interval` seconds whether new ones fit in.
- **Features, k-means and embedding** lose the calls of a lost node, which others do again; each
  call is repeated up to five times. Processes come back as soon as there is room; a stage ends in
  one line where there is room for none within `cluster.wait_for_workers` seconds.
- **A GPU that fails** in these stages (a CUDA error after which it no longer computes, or one that
  is gone when a process starts) is a lost process: it reports the error, whose traceback stands in
  `run.log`, is ended, and its calls go to others. Where a call meets that six times, or no process
  can start, the stage ends in one line with the node and what to look for.
- **The commands beside a run** (`vgse relate|evaluate|export|report`, `shards pack|check`) end on a
  full disk with one `error:` line that names the file or folder, and leave no half-written file.
- **A store** that does not answer is asked again for more than a minute before the run ends.
"""


def machine() -> str:
    """One line about what this ran on."""
    names = ("ray", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"Measured on {os.cpu_count()} cores ({platform.machine()}, {_processor()}), "
        f"Python {platform.python_version()}, {versions}; other work ran beside it "
        f"(load {os.getloadavg()[2]:.0f})."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Entries in their order, each fault as it was the last time."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return list({entry["fault"]: entry for entry in entries}.values())


def render(entries: list[dict[str, Any]], machine: str) -> str:
    """The page."""
    known = {entry["fault"]: entry for entry in entries}
    assert set(known) <= set(FAULTS), set(known) - set(FAULTS)
    rows = [
        f"| {entry['fault']} | {'<br>'.join(map(_code, entry['told']))} "
        f"| {_time(entry)} | {_difference(entry)} |"
        for entry in (known[fault] for fault in FAULTS if fault in known)
    ]
    owed = [fault for fault in FAULTS if fault not in known]
    text = HEAD.format(machine=machine) + "\n".join(rows) + "\n"
    if owed:
        text += "\nNot measured yet: " + "; ".join(f'"{fault}"' for fault in owed) + ".\n"
    return text + NOTES


def _code(line: str) -> str:
    if line.startswith("("):
        return line
    return "`" + " ".join(line.split()).replace("|", "\\|").replace("`", "'") + "`"


def _time(entry: dict[str, Any]) -> str:
    parts = []
    if "seconds" in entry:
        parts.append(f"{max(0.0, entry['seconds']):.0f} s in all")
    if "repeated_s" in entry:
        parts.append(f"{entry['repeated_s']:.0f} s from the last checkpoint to the new workers")
    if "waited_s" in entry:
        parts.append(f"{entry['waited_s']:.0f} s until the line")
    if "second_training_s" in entry:
        parts.append(f"{entry['second_training_s']:.0f} s for the rest of the training")
    return "; ".join(parts) or "–"


def _difference(entry: dict[str, Any]) -> str:
    if "difference" not in entry:
        return "–"
    text = f"{entry['difference']:.1e}" if entry["difference"] else "0"
    if "loss_difference" in entry:
        text += f" (last loss {entry['loss_difference']:.1e} apart; see Elastic runs)"
    return text


def main() -> int:
    """Run the tests and write the page; the tests' exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, default=ROOT / "runs" / "faults.jsonl")
    parser.add_argument("--only-write", action="store_true", help="Run nothing.")
    options = parser.parse_args()
    status = 0
    if not options.only_write:
        options.log.parent.mkdir(parents=True, exist_ok=True)
        options.log.unlink(missing_ok=True)
        files = [f"tests/faults/{name}" for name in (*TESTS, "test_resume.py")]
        command = [sys.executable, "-m", "pytest", "-m", "slow", *files]
        env = {**os.environ, "VGSE_FAULTS_LOG": str(options.log.absolute())}
        status = subprocess.run(command, cwd=ROOT, env=env).returncode
    PAGE.write_text(render(read_log(options.log), machine()))
    print(PAGE.relative_to(ROOT))
    return status


if __name__ == "__main__":
    sys.exit(main())
