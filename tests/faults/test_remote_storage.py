"""Whole runs whose folder, cache and shards lie in object storage, killed and cut off."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from s3_gate import Gate, gate_before
from shards_s3 import CREDENTIALS, s3_server
from tiny import make_tiny
from vgse.formats import read_npz

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "training"
pytestmark = pytest.mark.slow


class Place:
    """A bucket with shards behind a gate, and the same shards on disk."""

    def __init__(self, root: Path, gate: Gate, store: Any) -> None:
        self.root, self.gate, self.store = root, gate, store

    def start(self, run_id: str, *more: str, far: bool = True) -> subprocess.Popen[str]:
        """Start a run with everything in the bucket, or on disk."""
        here = f"s3://{BUCKET}" if far else str(self.root)
        config = {
            "data": {"shards": f"{here}/packed", "words": str(self.root / "words.txt")},
            "model": {"num_clusters": 20, "projection": 64},
            "training": {"epochs": 6, "batch_size": 24, "checkpoint_steps": 4},
            "storage": f"{here}/runs",
        }
        path = self.root / f"{run_id}.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "distributed", "train", "--config", str(path)]
        return subprocess.Popen(
            [*command, "--run-id", run_id, *more],
            cwd=ROOT,
            env={**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": self.gate.url}
            | {"PYTHONUNBUFFERED": "1", "TMPDIR": str(self.root / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def files(self, run_id: str) -> set[str]:
        """Names below the run folder in the bucket."""
        self.store.invalidate_cache()
        prefix = f"{BUCKET}/runs/{run_id}/"
        return {path.removeprefix(prefix) for path in self.store.find(prefix)}

    def wait_for_checkpoint(self, run_id: str, process: subprocess.Popen[str]) -> None:
        for _ in range(1500):
            if any(name.endswith("state.json") for name in self.files(run_id)):
                return
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.2)
        raise AssertionError("no checkpoint")

    def embeddings(self, run_id: str) -> np.ndarray:
        target = self.root / f"{run_id}.npz"
        self.store.get_file(f"{BUCKET}/runs/{run_id}/class_embeddings.npz", str(target))
        return read_npz(target).embeddings


def finish(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=570)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    s3fs = pytest.importorskip("s3fs")
    root = tmp_path_factory.mktemp("far")
    (root / "tmp").mkdir()
    manifest = make_tiny(root)
    with s3_server() as address, gate_before(address) as gate:
        store = s3fs.S3FileSystem(
            endpoint_url=address, key="testing", secret="testing", skip_instance_cache=True
        )
        store.mkdir(BUCKET)
        store.put(manifest.url, f"{BUCKET}/packed", recursive=True)
        yield Place(root, gate, store)


@pytest.fixture(scope="module")
def expected(place: Place) -> np.ndarray:
    """The embeddings of a run on disk."""
    finish(place.start("near", far=False))
    return read_npz(place.root / "runs" / "near" / "class_embeddings.npz").embeddings


def test_a_run_in_a_bucket_whose_driver_is_killed_ends_as_one_on_disk(
    place: Place, expected: np.ndarray
) -> None:
    process = place.start("killed")
    place.wait_for_checkpoint("killed", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = finish(place.start("killed"))
    assert "there already: init/centroids.npy" in again
    assert "from the cache" in again
    np.testing.assert_allclose(place.embeddings("killed"), expected, atol=1e-5)
    files = place.files("killed")
    wanted = {"config.yaml", "metrics.jsonl", "evaluation.json", "health.json", "report.html"}
    assert wanted | {"relations.npz", "embedded.npz", "init/centroids.npy"} <= files
    assert not [name for name in files if "part" in name]
    copy, report = again.splitlines()[-2:]
    assert report == f"s3://{BUCKET}/runs/killed/report.html"
    assert Path(copy.removesuffix(" (a copy)")).stat().st_size > 100_000

    refused = place.start("killed")
    output, _ = refused.communicate(timeout=100)
    assert refused.returncode == 2 and "this run is finished (class_embeddings.npz" in output
    place.store.rm_file(f"{BUCKET}/runs/killed/class_embeddings.npz")
    redone = finish(place.start("killed", "--resume"))
    assert "embedding   there already" in redone and "2 CPU workers" not in redone
    np.testing.assert_allclose(place.embeddings("killed"), expected, atol=1e-5)


def test_a_bucket_that_is_away_for_a_while_costs_only_time(
    place: Place, expected: np.ndarray
) -> None:
    process = place.start("away")
    place.wait_for_checkpoint("away", process)
    place.gate.shut()
    time.sleep(30)  # more than the six attempts of a short patience
    assert process.poll() is None
    place.gate.open()
    output = finish(process)
    assert "restart" not in output, "no worker was started again for it"
    np.testing.assert_allclose(place.embeddings("away"), expected, atol=1e-5)


def test_a_bucket_that_cannot_be_reached_is_one_line_before_ray_starts(place: Place) -> None:
    place.gate.shut()
    process = place.start("never", "--data.shards", str(place.root / "packed"))
    output, _ = process.communicate(timeout=200)
    place.gate.open()
    assert process.returncode == 2
    assert output.startswith(f"error: s3://{BUCKET}/runs/never: cannot be listed, 4 attempts in")
    assert output.count("\n") == 1
