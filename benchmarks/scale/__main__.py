"""What grows with the data set and the cluster, and how fast: before and after.

    python -m benchmarks.scale [--rows manifest,start,...]

Manifests of 1k, 10k and 100k shards are made (1,000 images each, 1,000 classes), and processes are
faked; no picture is read and no GPU is used. Each value comes from a process of its own, which
runs the same probe on this checkout and on the one before (a commit, taken from git into a
temporary folder). It writes `benchmarks/results/scale.json` and, from that, `scale.md`; with
--rows the other rows stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.scale import made
from benchmarks.scale.page import BEFORE, ROWS, Row, page
from vgse.files import written_whole

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def measure(probe: str, given: Any, root: Path) -> dict[str, float]:
    """What a probe says of a checkout, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.scale.probes", probe, json.dumps(given)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{ROOT}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def prepared(row: Row, size: int, version: int, work: Path) -> Any:
    """What the probe of a row is given: a size, or the path of what is made of that size."""
    if not row.needs:
        return size
    suffix = f"-{version}" if row.needs == "manifest" else ""
    path = work / f"{row.needs}{suffix}-{size}"
    if not path.exists():
        if row.needs == "manifest":
            made.make_manifest(path, size, version)
        elif row.needs == "tree":
            made.make_tree(path, size)
        elif row.needs == "cache":
            made.make_cache(path, size)
        else:
            made.make_run(path, size)
    return str(path)


def earlier(work: Path) -> Path:
    """The checkout before."""
    root = work / "before"
    root.mkdir()
    archive = subprocess.run(
        ["git", "archive", BEFORE], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(root)], input=archive.stdout, check=True)
    return root


def measure_row(name: str, row: Row, work: Path, before: Path) -> dict[str, Any]:
    """Medians of each value by size, before and after."""
    found: dict[str, Any] = {"before": {}, "after": {}}
    for size in row.after:
        for side, sizes, number, root in (
            ("before", row.before, 1, before),
            ("after", row.after, 2, ROOT),
        ):
            if size not in sizes:
                continue
            given = prepared(row, size, number, work)
            rounds = [measure(name, given, root) for _ in range(row.rounds)]
            found[side][str(size)] = {key: median(r[key] for r in rounds) for key in rounds[0]}
            print(name, side, size, found[side][str(size)], flush=True)
    return found


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help='"" makes the page alone')
    options = parser.parse_args()
    stored = RESULTS / "scale.json"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vgse-scale-") as folder:
        work = Path(folder)
        before = earlier(work)
        for name in filter(None, options.rows.split(",")):
            found[name] = measure_row(name, ROWS[name], work, before)
    results = json.loads(stored.read_text()) if stored.exists() else {"rows": {}}
    results["rows"].update(found)
    if found:
        results["machine"] = (
            f"Machine: {platform.machine()}, {os.cpu_count()} cores shared with other work, load "
            f"{os.getloadavg()[0]:.1f} at the end; python {platform.python_version()}, "
            f"torch {version('torch')}, ray {version('ray')}, numpy {version('numpy')}."
        )
    for path, text in (
        (stored, json.dumps(results, indent=1)),
        (RESULTS / "scale.md", page(results)),
    ):
        with written_whole(path) as stream:
            stream.write(text.encode())


if __name__ == "__main__":
    main()
