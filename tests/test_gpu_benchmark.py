"""benchmarks.gpu runs on a machine with torch and torchvision alone, and says what it measured."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_page import ratios, spread
from benchmarks.gpu_paths import Turn, peak_tflops

ROOT = Path(__file__).parents[1]
MISSING = [
    "cv2",
    "simplejpeg",
    "fsspec",
    "safetensors",
    "numba",
    "piqp",
    "jsonargparse",
    "faiss",
    "scipy",
    "sklearn",
    "skimage",
    "ray",
    "rich",
    "yaml",
    "matplotlib",
    "webdataset",
    "pandas",
    "optuna",
    "efficientnet_lite_pytorch",
]
SMALL = "--side 32 --batch 2 --rounds 1 --steps 1 --pictures 8 --points 2000 --loader-workers 0"


def run_quick(out: Path, missing: list[str]) -> str:
    """The page of the smallest run in a process that lacks some libraries."""
    program = (
        "import runpy, sys\n"
        f"for name in {missing!r}: sys.modules[name] = None\n"
        f"sys.argv = ['gpu', '--quick', '--out', {str(out)!r}, *{SMALL.split()!r}]\n"
        "runpy.run_module('benchmarks.gpu', run_name='__main__')"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return (out / "gpu.md").read_text()


def test_it_runs_with_torch_and_torchvision_alone(tmp_path: Path) -> None:
    page = run_quick(tmp_path, MISSING)
    assert "GPU figures are owed" in page
    assert "python -m benchmarks.gpu\n" in page
    assert "a plain tar reader with PIL" in page
    assert "cpu (torch)" in page
    assert "cpu (FAISS)" not in page
    for row in ("(a) torchvision, forward", "(b) our step", "(c) our step", "cut_patches"):
        assert row in page


def test_where_the_loader_is_installed_it_is_what_feeds_the_step(tmp_path: Path) -> None:
    page = run_quick(tmp_path, [])
    assert "by our loader" in page
    assert "cpu (FAISS)" in page


def test_without_a_gpu_full_sizes_are_refused(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert "use --quick" in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_is_that_of_the_device_or_unknown(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_ratios_are_taken_within_a_round() -> None:
    rounds = [{"a": Turn(1.0, 10), "b": Turn(s, 10)} for s in (2.0, 4.0, 5.0)]
    assert ratios(rounds, "b", "a") == [0.5, 0.25, 0.2]
    assert spread(ratios(rounds, "b", "a")) == "0.25 (0.20 to 0.50)"
