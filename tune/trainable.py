"""What Ray Tune runs for a trial."""

import logging
import os
from typing import Any

import ray
import torch
from ray import tune
from ray.train import ControllerError
from ray.tune import PlacementGroupFactory

from tune.material import Material
from tune.nested import run_nested
from tune.trial import run_trial


def tune_trial(config: dict[str, Any], material: list[Any]) -> None:
    """One trial; what goes wrong in it is reported as its last row, not raised.

    A process that outlives its trial serves the next one, and the search goes on.

    Args:
        config: `trial`, its name, and `params`, dotted fields and their values.
        material: one reference, to the search's Material in Ray's object store.
    """
    shared: Material = ray.get(material[0])
    logging.getLogger("ray").setLevel(logging.ERROR)
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    name, params = str(config["trial"]), dict(config["params"])
    epoch = 0

    def report(row: dict[str, Any]) -> None:
        nonlocal epoch
        epoch = row["epoch"]
        tune.report(row)

    try:
        if shared.config.workers_per_trial > 1:
            run_nested(material[0], name, params, report)
        else:
            run_trial(shared, name, params, report)
    except ControllerError:
        raise  # the cluster's failure, not the trial's: Ray Tune tries again
    except Exception as error:
        tune.report({"epoch": epoch, "failed": cause_of(error)})


def cause_of(error: BaseException) -> str:
    """One line that says what went wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    lowered = text.lower()
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "out of memory" in lowered:
        return f"out of memory: {text[:200]}"
    if isinstance(error, ValueError):
        return text[:300]
    return f"{type(error).__name__}: {text[:300]}"


def resources_of(material: Material, cpus: float, gpus: float) -> PlacementGroupFactory:
    """What a trial reserves: its worker, or next to nothing for one whose workers do so."""
    if material.config.workers_per_trial > 1:
        # Any part of a CPU for the drivers would leave too little for the workers of the last trial
        # that fits, and all would wait for ever.
        return PlacementGroupFactory([{"node:__internal_head__": 0.001}])
    bundle = {"CPU": max(cpus, 0.001)}
    return PlacementGroupFactory([bundle | ({"GPU": gpus} if gpus else {})])
