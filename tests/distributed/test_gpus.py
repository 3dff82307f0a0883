"""The first task on a GPU: what is wrong with it is said in one line, before anything is computed.

Ray counts GPUs without looking at them, so that here the task can be given none.
"""

import sys

import pytest
import ray
import torch

from distributed import gpus
from distributed.gpus import Probe, gpu_precision, probe_gpu

pytestmark = pytest.mark.usefixtures("ray_session")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_tests_that_need_no_gpu_see_none() -> None:
    assert torch.cuda.device_count() == 0 == ray.cluster_resources().get("GPU", 0)


def test_a_gpu_that_torch_cannot_use_ends_the_run_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"cannot compute on the GPU of .*R580 or newer") as raised:
        gpu_precision("auto", gpus=0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_what_the_gpu_multiplies_in(
    native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Probe("10.0.0.7", gpu="Tesla T4", bfloat16=native)
    monkeypatch.setattr(gpus, "probe_gpu", lambda: probe)
    assert gpu_precision("auto", gpus=0) == expected
    assert gpu_precision("float32", gpus=0) == "float32"
    if not native:
        with pytest.raises(ValueError, match=r"Tesla T4 of 10\.0\.0\.7 only emulates"):
            gpu_precision("bfloat16", gpus=0)


def test_another_torch_on_the_nodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Probe("10.0.0.7", version="1.13.1+cu117", gpu="NVIDIA H100", bfloat16=True)
    monkeypatch.setattr(gpus, "probe_gpu", lambda: other)
    with pytest.raises(ValueError, match=r"here and 1\.13\.1\+cu117 on 10\.0\.0\.7"):
        gpu_precision("auto", gpus=0)


def test_a_wrong_product_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.ones
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch, "ones", lambda *size, device: 2 * plain(*size))
    assert "a product of matrices is 1.04858e+06 there, not 262144" in probe_gpu().fault


def test_gpus_that_others_hold_are_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpus, "_TIME_OUT_S", 0.3)
    with pytest.raises(ValueError, match=r"no GPU was free for a first task within 0.3 s"):
        gpu_precision("auto", gpus=1000)


@pytest.mark.gpu
def test_a_gpu_that_works_is_found_to() -> None:
    probe = probe_gpu()
    assert probe.fault == "" and probe.gpu == torch.cuda.get_device_name()
