"""What Ray Tune runs for a trial."""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.train import ControllerError, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune import PlacementGroupFactory
from ray.tune.integration.ray_train import TuneReportCallback
from torch import nn

from distributed.features.cache import access_of, read_unit, weights_of, write_tensors
from distributed.features.extract import patch_features
from distributed.train.one_process import train_alone
from distributed.train.ray_trainer import ddp_options, start_failures, start_timeout
from distributed.train.trainer import train_epochs
from tune.trial.checkpoints import keep, kept
from tune.trial.context import Material, trial_job
from tune.trial.evaluator import Judge, collapse_cause
from vgse.errors import UserError
from vgse.images.backbones import build_backbone
from vgse.training.model import TrainingModel

Report = Callable[[dict[str, Any]], None]
"""Takes an epoch's row; may raise to end the trial."""


class Collapsed(Exception):
    """Ends the training of a trial that is not worth going on with."""


def run_trial(material: Material, trial: str, params: Mapping[str, Any], report: Report) -> None:
    """Train a trial to its last epoch, or until it collapses, and report each epoch.

    A trial that was interrupted goes on from its last checkpoint; the rows up to there are
    reported again, so that whoever listens knows the whole trial.

    Raises:
        ValueError: the loss is not finite, or the data has too few distinct patches.
    """
    search = Path(material.folder)
    checkpoint, history = kept(search, trial)
    for row in history:
        report(row)
    if history and (history[-1]["epoch"] >= material.base.training.epochs or ended(history[-1])):
        return
    with patches_for(material) as (features, renew):
        job = trial_job(material, params, features=features)
        judge = Judge(material, job)
        began = time.monotonic()

        def on_epoch(trained: dict[str, Any], made: Path | None) -> None:
            nonlocal began
            assert made is not None, "a trial makes a checkpoint every epoch"
            row = judged(material, judge, job.config.model.num_clusters, trained, made, history)
            row["seconds"] = round(time.monotonic() - began, 3)
            history.append(row)
            keep(search, trial, made, history)
            report(row)
            if ended(row):
                raise Collapsed
            began = time.monotonic()
            if row["epoch"] < job.config.training.epochs:
                renew()

        try:
            train_alone(job, checkpoint=checkpoint, on_epoch=on_epoch, device=material.device)
        except Collapsed:
            return


def judged(
    material: Material,
    judge: Judge,
    num_clusters: int,
    trained: dict[str, Any],
    made: Path,
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    """The row of an epoch, with `collapsed` where the trial has."""
    row = judge.row(trained, made)
    cause = collapse_cause(
        [*history, row], num_clusters, len(material.trained), material.config.collapse_share
    )
    return row if cause is None else row | {"collapsed": cause}


def ended(row: Mapping[str, Any]) -> bool:
    """Whether a row is the last of a trial that did not do all its epochs."""
    return bool(row.get("collapsed") or row.get("failed"))


@contextmanager
def patches_for(material: Material) -> Iterator[tuple[str | None, Callable[[], None]]]:
    """The folder of patch features for a trial, and what to call before the next epoch.

    On the cache that is None and nothing. From pixels it is a folder of the trial's own, into
    which every patch is decoded, cut and sent through the backbone anew for each epoch.
    """
    if not material.config.from_pixels:
        yield None, _nothing
        return
    folder = Path(tempfile.mkdtemp(prefix="vgse-pixels-"))
    spec, access = material.spec, access_of(material.base.data)
    backbone = build_backbone(spec.name, weights_of(spec)).to(material.device)

    def renew() -> None:
        for unit in material.units:
            known = read_unit(material.features, unit, access)
            with torch.inference_mode():
                patches = patch_features(material.url, unit, spec, backbone, material.device)
            tensors = {
                "labels": known.labels,
                "rows": known.rows,
                "images": known.images,
                "patches": patches.half(),
            }
            write_tensors(folder / unit.file, tensors, {"keys": json.dumps(known.keys)})

    try:
        renew()
        yield str(folder), renew
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _nothing() -> None:
    """What a trial on the cache does before an epoch."""


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
    if isinstance(error, UserError):
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
