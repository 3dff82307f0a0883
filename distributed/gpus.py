"""Whether the GPUs that Ray counts can be used: one task on one of them, before all others."""

from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import torch

from distributed.cluster import describe_failure
from vgse.errors import UserError

_TIME_OUT_S = 300.0  # a new node loads an image and imports torch


@dataclass(frozen=True)
class Probe:
    """What a task found on its node."""

    node: str
    version: str = torch.__version__
    cuda: str = torch.version.cuda or "none"
    gpu: str = ""
    bfloat16: bool = False  # by the hardware, not emulated
    fault: str = ""


def probe_gpu() -> Probe:
    """Try the GPU of this process with a small product."""
    node = ray.util.get_node_ip_address()
    try:
        torch.cuda.init()  # where there is no GPU it says why
        ones = torch.ones(64, 64, device="cuda")
        product = float((ones @ ones).sum())
    except (RuntimeError, AssertionError) as error:
        return Probe(node, fault=" ".join(str(error).split())[:200])
    if product != 64**3:
        return Probe(node, fault=f"a product of matrices is {product:g} there, not {64**3}")
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return Probe(node, gpu=torch.cuda.get_device_name(), bfloat16=native)


def gpu_precision(wanted: str, *, gpus: float = 1) -> str:
    """The number format of θ on the cluster's GPUs, once a task has shown that they work; "auto"
    becomes "bfloat16" where the hardware multiplies in it."""
    task: Any = ray.remote(num_cpus=0, num_gpus=gpus)(probe_gpu)
    call = task.remote()
    try:
        probe: Probe = ray.get(call, timeout=_TIME_OUT_S)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(call)
        raise UserError(
            f"cluster.use_gpu: no GPU was free for a first task within {_TIME_OUT_S:g} s; see "
            "what else runs on the cluster, or set it to no"
        ) from None
    except ray.exceptions.RayError as error:
        lost = f"cluster.use_gpu: a first task on a GPU was lost ({describe_failure(error)})"
        raise UserError(f"{lost}; run the same command again") from error
    own = torch.__version__.partition("+")[0]
    if probe.version.partition("+")[0] != own:
        raise UserError(
            f"torch is {own} here and {probe.version} on {probe.node}; install both with "
            "--constraint deploy/constraints.txt"
        )
    if probe.fault:
        raise UserError(
            f"cluster.use_gpu: torch {probe.version} cannot compute on the GPU of {probe.node} "
            f"({probe.fault}); CUDA {probe.cuda} needs its driver (13 needs R580 or newer) and a "
            "GPU that this torch was built for (docs/cluster.md); mend that, or set "
            "cluster.use_gpu to no"
        )
    if wanted == "bfloat16" and not probe.bfloat16:
        raise UserError(
            f"backbone.precision is bfloat16, which the {probe.gpu} of {probe.node} only emulates, "
            "slower than float32; set it to float32 or auto"
        )
    if wanted == "auto":
        return "bfloat16" if probe.bfloat16 else "float32"
    return wanted
