"""benchmarks.gpu runs on a machine with torch and torchvision alone, and says what it measured."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import arguments, compiled_path
from benchmarks.gpu.memory import kept_bytes, optimiser_bytes
from benchmarks.gpu.page import ROWS, Results, ratios, render, spread
from benchmarks.gpu.paths import Setting, Turn, peak_tflops

ROOT = Path(__file__).resolve().parents[2]
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
    assert "A CPU's figures" in page
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


def test_without_a_gpu_full_sizes_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--quick"])
    assert arguments().side == 64
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="2"):
        arguments()
    assert "use --quick" in capsys.readouterr().err


def gpu_results() -> Results:
    """As on a GPU, with the steps measured and nothing after them."""
    setting = Setting("resnet50", 224, 9, 64, torch.device("cuda"), "bfloat16")
    results = Results(setting, "NVIDIA H100 80GB HBM3", "16 cores", "the command", quick=False)
    results.rounds = [{path: Turn(2.0, 640, 0.01) for path in ROWS}] * 3
    results.flops, results.peak_tflops = (8e9, 24e9), 989.0
    return results


def test_a_page_of_a_gpu_is_whole_after_each_part() -> None:
    results = gpu_results()
    page = render(results)
    assert "A CPU's figures" not in page
    assert page.count("Not measured: the benchmark was ended before.") == 3
    results.memory = dict.fromkeys(ROWS, 41.5)
    results.largest = {"synthetic": (101, 79.0), "accumulated": (399, 78.5)}
    results.cutting, results.cutting_gaps = [{"cut_patches": Turn(1.0, 64)}], {"cut_patches": 0.0}
    results.clusterings, results.clustering_sizes = [("cuda (torch)", 1.5, 1.2)], (1000, 256, 10)
    page = render(results)
    assert "Not measured" not in page
    assert "| (b) our step, data on the device | 101 | 909 | 79.0 |" in page
    assert "| 2,880 | 1.00 (1.00 to 1.00) | 69.12 | 7% | 41.5 |" in page


def test_what_a_patch_keeps_for_the_backward_pass_is_counted() -> None:
    patch, rest = kept_bytes("resnet18", 64)
    larger, same = kept_bytes("resnet18", 128)
    assert larger == pytest.approx(4 * patch, rel=0.02)  # four times the pixels
    assert rest == same == pytest.approx(2 * 11.2e6, rel=0.05)  # weights in bfloat16
    assert optimiser_bytes("resnet18") == pytest.approx(16 * 11.2e6, rel=0.05)


def test_blocks_that_cannot_be_compiled_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = Setting("resnet18", 32, 2, 2, torch.device("cpu"), "float32")
    monkeypatch.setattr("vgse.images.backbones.Backbone.compile_blocks", _no_compiler)
    assert compiled_path(setting, 1) is None
    assert "compiled: left out, RuntimeError: no C compiler" in capsys.readouterr().out


def _no_compiler(backbone: torch.nn.Module) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no C compiler")

    backbone.register_forward_pre_hook(refuse)


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
