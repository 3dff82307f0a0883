"""What Ray Tune runs for a trial: each epoch is trained, scored, stored and reported."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.train import ControllerError, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from distributed.train.ray_trainer import (
    COLLECTIVES,
    controller_settings,
    parallel_model,
    start_failures,
)
from distributed.train.trainer import TrainingJob, train_alone, train_epochs
from tune.space import with_params
from tune.trial.checkpoints import latest_checkpoint, store_checkpoint
from tune.trial.context import TrialContext, ensure_start
from tune.trial.evaluator import Evaluator
from vgse.errors import UserError
from vgse.images.devices import context_is_broken
from vgse.knowledge.sources import semantic_targets


class Collapsed(Exception):
    """Ends the training of a trial that is not worth going on with."""


def tune_trial(config: dict[str, Any], context: list[Any]) -> None:
    """One trial; what goes wrong in it is reported as its last row, not raised: the process serves
    the next trial, unless its GPU can no longer be used. `context` holds one reference, to the
    TrialContext in Ray's object store."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS") or 1)))
    epoch = 0

    def report(row: dict[str, Any]) -> None:
        nonlocal epoch
        epoch = row["epoch"]
        tune.report(row)

    try:
        run_trial(ray.get(context[0]), config["trial"], config["params"], report, context[0])
    except ControllerError:
        raise  # the cluster's failure, not the trial's: Ray Tune tries again
    except Exception as error:
        if context_is_broken():
            raise  # ends this process, which could serve no other; Ray Tune tries again
        tune.report({"epoch": epoch, "failed": cause_of(error)})


def run_trial(
    context: TrialContext,
    trial: str,
    params: Mapping[str, Any],
    report: Callable[[dict[str, Any]], None],
    shared: Any = None,
) -> None:
    """Train a trial to its last epoch, or until it collapses, and report each epoch.

    One that was interrupted goes on from its last checkpoint, and reports all rows again. `shared`
    is the context's reference in Ray's object store, for trials of several workers.
    """
    checkpoint, history = latest_checkpoint(Path(context.folder), trial)
    for row in history:
        report(row)
    if history and (history[-1]["epoch"] >= context.base.training.epochs or ended(history[-1])):
        return
    job = trial_job(context, params)
    if context.config.workers_per_trial > 1:
        _train_nested(context, shared, trial, params)
        return
    evaluator = Evaluator(context, job, history)

    def on_epoch(trained: dict[str, Any], made: Path | None) -> None:
        assert made is not None, "a trial makes a checkpoint every epoch"
        row = evaluator.row(trained, made)
        store_checkpoint(Path(context.folder), trial, made, history)
        report(row)
        if ended(row):
            raise Collapsed

    with suppress(Collapsed):
        train_alone(job, checkpoint=checkpoint, on_epoch=on_epoch, device=context.device)


def trial_job(context: TrialContext, params: Mapping[str, Any]) -> TrainingJob:
    """What a trial trains, with its start computed if no trial has done so before."""
    config = with_params(context.base, params)
    content = json.dumps([context.fingerprint, dict(params)], sort_keys=True)
    return TrainingJob(
        config=config,
        run=str(ensure_start(context, config)),
        url=context.url,
        spec=context.spec,
        folder=context.features,
        classes=context.trained.tolist(),
        num_classes=len(context.word_vectors),
        targets=semantic_targets(
            *(context.knowledge, context.word_vectors, context.trained),
            config.loss.semantic_target,
        ).astype(np.float32),
        num_features=context.num_features,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        roles=context.roles,
    )


def ended(row: Mapping[str, Any]) -> bool:
    """Whether a row is the last of a trial that did not do all its epochs."""
    return bool(row.get("collapsed") or row.get("failed"))


def _train_nested(
    context: TrialContext, shared: Any, trial: str, params: Mapping[str, Any]
) -> None:
    """Train a trial of several workers by Ray Train; rows reach Ray Tune by its callback.

    A new attempt is a new run of Ray Train that starts from the checkpoint in the search folder.
    """
    cluster = context.base.cluster
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"context": shared, "trial": trial, "params": dict(params)},
        torch_config=COLLECTIVES,
        scaling_config=ScalingConfig(
            num_workers=context.config.workers_per_trial,
            use_gpu=context.device == "cuda",
            resources_per_worker={"CPU": cluster.cpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=f"trial-{trial}-{time.time_ns()}",  # never one that Ray Train knows
            storage_path=str(Path(context.folder) / "ray"),
            failure_config=FailureConfig(
                max_failures=cluster.max_failures,
                controller_failure_limit=start_failures(cluster),  # type: ignore[call-arg]
            ),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    )
    with controller_settings(cluster):
        trainer.fit()


def _worker(arguments: dict[str, Any]) -> None:
    """What every worker of a trial runs."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    context: TrialContext = ray.get(arguments["context"])
    trial, rank = arguments["trial"], ray.train.get_context().get_world_rank()
    job = trial_job(context, arguments["params"])
    checkpoint, history = latest_checkpoint(Path(context.folder), trial)
    evaluator = Evaluator(context, job, history) if rank == 0 else None

    def report(trained: dict[str, Any], made: Path | None) -> None:
        """A barrier over all ranks; only the first rank's row counts."""
        if evaluator and made is not None:
            trained = evaluator.row(trained, made)
            store_checkpoint(Path(context.folder), trial, made, history)
        ray.train.report(trained)
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)

    try:
        train_epochs(job, ray.train.torch.get_device(), rank, checkpoint, report, parallel_model)
    except UserError as error:  # such as a loss that is not finite, which all ranks see
        ray.train.report({"epoch": len(history), "failed": cause_of(error)})


def cause_of(error: BaseException) -> str:
    """One line that says what went wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    if memory or "out of memory" in text.lower():
        return f"out of memory: {text[:200]}"
    if isinstance(error, UserError):
        return text[:300]
    return f"{type(error).__name__}: {text[:300]}"
