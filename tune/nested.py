"""A trial of several workers: a run of Ray Train within a trial of Ray Tune."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from torch import nn

from distributed.loop import train_epochs
from distributed.parallel import ddp_options
from distributed.start_timeout import start_failures, start_timeout
from tune.judge import Judge
from tune.keeping import keep, kept
from tune.material import Material, trial_job
from tune.trial import ended, judged
from vgse.model import TrainingModel


def run_nested(
    shared: Any,
    trial: str,
    params: Mapping[str, Any],
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Train a trial by Ray Train; its rows reach Ray Tune by a callback.

    `shared` refers to the search's Material in Ray's object store.

    Checkpoints lie in the search folder, as those of trials of one worker do, and not with Ray
    Train: a new attempt is a new run of Ray Train that starts from there.

    Raises:
        ray.train.TrainingFailedError: workers died more often than `cluster.max_failures` allows.
    """
    material: Material = ray.get(shared)
    _, history = kept(Path(material.folder), trial)
    for row in history:
        report(row)
    if history and (history[-1]["epoch"] >= material.base.training.epochs or ended(history[-1])):
        return
    trial_job(material, params)  # the start: once here, and not in every worker
    cluster = material.base.cluster
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"material": shared, "trial": trial, "params": dict(params)},
        scaling_config=ScalingConfig(
            num_workers=material.config.workers_per_trial,
            use_gpu=material.device == "cuda",
            resources_per_worker={"CPU": cluster.cpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=f"trial-{trial}-{time.time_ns()}",  # never one that Ray Train knows
            storage_path=str(Path(material.folder) / "ray"),
            failure_config=FailureConfig(
                max_failures=cluster.max_failures,
                controller_failure_limit=start_failures(cluster),  # type: ignore[call-arg]
            ),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    )
    with start_timeout(cluster):
        trainer.fit()


def _worker(arguments: dict[str, Any]) -> None:
    """What every worker of a trial runs."""
    material: Material = ray.get(arguments["material"])
    logging.getLogger("ray").setLevel(logging.ERROR)
    trial, search = arguments["trial"], Path(material.folder)
    rank = ray.train.get_context().get_world_rank()
    job = trial_job(material, arguments["params"])
    checkpoint, history = kept(search, trial)
    judge = Judge(material, job) if rank == 0 else None
    began = time.monotonic()

    def report(trained: dict[str, Any], made: Path | None) -> None:
        """A barrier over all ranks; only the first rank's row counts."""
        nonlocal began
        row = trained
        if judge is not None:
            assert made is not None, "a trial makes a checkpoint every epoch"
            row = judged(material, judge, job.config.model.num_clusters, trained, made, history)
            row["seconds"] = round(time.monotonic() - began, 3)
            history.append(row)
            keep(search, trial, made, history)
            shutil.rmtree(made, ignore_errors=True)
        ray.train.report(row)
        began = time.monotonic()

    try:
        train_epochs(job, ray.train.torch.get_device(), rank, checkpoint, report, _parallel)
    except ValueError as error:  # such as a loss that is not finite, which all ranks see
        ray.train.report({"epoch": len(history), "failed": " ".join(str(error).split())})


def _parallel(model: TrainingModel) -> nn.Module:
    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs=ddp_options())
