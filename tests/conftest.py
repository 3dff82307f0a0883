"""Fixtures that several test files share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests are small: threads only get in their way

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from torch import Tensor
from torch.multiprocessing.spawn import spawn

import distributed  # noqa: F401  sets Ray's environment before a test imports Ray

if TYPE_CHECKING:
    from fault_runs import Ended


def pytest_configure(config: pytest.Config) -> None:
    """Hide this machine's GPUs, before CUDA looks for them, from all tests but `-m gpu`: they ask
    what happens without."""
    chosen = config.getoption("markexpr")
    if "gpu" not in chosen or "not gpu" in chosen:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the shared Ray, which `make test` runs beside all others."""
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of two gloo workers found, see gloo_workers."""
    from safetensors.torch import load_file

    import gloo_workers

    folder = tmp_path_factory.mktemp("workers")
    spawn(gloo_workers.run, (str(folder),), nprocs=gloo_workers.WORLD)
    return [load_file(folder / f"worker{rank}.safetensors") for rank in range(gloo_workers.WORLD)]


@pytest.fixture(scope="session")
def one_worker() -> dict[str, Tensor]:
    """What one worker finds with the joint batch."""
    import gloo_workers

    return gloo_workers.joint()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests: starting it costs more than most of them."""
    from distributed.cluster import ray_cluster
    from vgse.config import ClusterConfig

    # Four CPUs in name: two trials of two workers each run at once in test_finalists.
    with ray_cluster(ClusterConfig(num_workers=4)):
        yield


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed tiny set, and a folder for runs of it."""
    from tiny import make_tiny

    root = tmp_path_factory.mktemp("tiny")
    make_tiny(root, test=4)
    return root


@pytest.fixture(scope="session")
def uninterrupted(tiny_runs: Path) -> "Ended":
    """A run that nothing happens to, which those that are interrupted are compared with."""
    from fault_runs import start_run

    return start_run(tiny_runs, "uninterrupted").end()
