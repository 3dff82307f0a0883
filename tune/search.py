"""A search from its configuration to its winner: trials under Ray Tune, then the finalists."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

import ray
from ray import tune

from distributed.cluster import ray_cluster, wants_gpu
from distributed.display import Display
from distributed.features.extract import run_features
from distributed.setup import prepare, record_roles
from tune.callbacks import TrialCallback
from tune.config import SearchConfig, check_folder, check_search, search_folder, to_dict, write_yaml
from tune.finalists import score_finalists
from tune.scheduler import Halving
from tune.searcher import JournalSearch
from tune.space import check_space_fits, with_params
from tune.study import TrialRecord, open_journal, ranked, read_trials, trials_of
from tune.trial.context import TrialContext, make_context, trial_base
from tune.trial.objective import check_objective
from tune.trial.trainable import tune_trial
from vgse.config import to_dict as run_to_dict
from vgse.errors import UserError
from vgse.files import disk_errors_in_one_line, sole_user, write_json

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial has no objective
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # a resume starts from the journal
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "100000",
}


class Interrupted(Exception):
    """The user stopped the search; every trial that ended, and every epoch, is kept."""


def search(
    config: SearchConfig, search_id: str, *, resume: bool = False, verbose: bool = False
) -> Path:
    """Run all trials, or with `resume` what is left, retrain the best, and return the folder."""
    check_search(config)
    prepared = prepare(trial_base(config))
    check_space_fits(trial_base(config), config.space, prepared)
    check_objective(config, prepared)
    config = replace(config, run=record_roles(config.run, prepared))
    folder = search_folder(config, search_id)
    check_folder(folder, config, resume=resume)
    with disk_errors_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    with ExitStack() as stack:
        stack.enter_context(sole_user(folder))
        check_folder(folder, config, resume=resume)  # once more: another may have begun
        records = read_trials(folder)
        write_yaml(folder / "search.yaml", to_dict(config))
        display = stack.enter_context(Display())
        ended = sum(record.ended for record in records)
        there = f", {ended} of them there already" if ended else ""
        display.line(
            f"{prepared.manifest.source or prepared.manifest.url}: {config.trials} trials{there}, "
            f"{config.objective} of {len(prepared.val)} validation classes after training on "
            f"{len(prepared.trained)} others"
        )
        with display.stage("ray") as stage:
            # It holds at least a trial, and a finalist's run. Ray Train asks the dashboard whether
            # a run was killed, and frees its CPUs then.
            workers = max(config.run.cluster.num_workers, config.workers_per_trial)
            cluster = replace(config.run.cluster, num_workers=workers, min_workers=None)
            nested = config.workers_per_trial > 1
            stack.enter_context(ray_cluster(cluster, verbose=verbose, dashboard=nested))
            concurrent, device = concurrent_trials(config, display.line)
            stage.summary = f"{concurrent} trials at a time, on {device}"
        # Of a backbone that learns only a sample of the features is cached: that of the largest
        # start that a trial can ask for.
        fields = ("model.num_clusters", "model.max_points_per_centroid")
        largest = {name: int(config.space[name].highest) for name in fields if name in config.space}
        base = with_params(trial_base(config), largest)
        spec, features = run_features(base, prepared, device == "cuda", display, ["train"])
        context = make_context(config, prepared, spec, features, folder, device)
        with disk_errors_in_one_line(folder):
            records = run_trials(context, concurrent, records, display)
        best = ranked(records)
        if not best:
            raise UserError(
                f"{folder}: no trial came to an end; `python -m tune analyse {folder}` shows causes"
            )
        write_yaml(folder / "best.yaml", run_to_dict(with_params(config.run, best[0].params)))
        score_finalists(config, folder, records, display)
    return folder


def concurrent_trials(
    config: SearchConfig, say: Callable[[str], None]
) -> tuple[int, Literal["cpu", "cuda"]]:
    """Trials at a time, and the device that they are trained on, "cpu" or "cuda".

    Trials of several workers are never more than fit: Ray Train gives up on workers that wait long
    for a place. Waits for the workers of one trial as a run waits for its own, and says so.
    """
    workers, cluster = config.workers_per_trial, config.run.cluster
    on_gpu = wants_gpu(replace(cluster, num_workers=workers, min_workers=None), say)
    has = ray.cluster_resources()
    cpus = max(cluster.cpus_per_worker, 0.001) * workers
    gpus = config.gpus_per_trial if workers == 1 else float(workers)
    fits = int(has.get("CPU", 0) / cpus + 1e-9)
    if on_gpu:
        fits = min(fits, int(has.get("GPU", 0) / gpus + 1e-9))
    if fits < 1:
        takes = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if on_gpu else "")
        raise UserError(
            f"a trial takes {takes}, but the cluster has {has.get('CPU', 0):g} CPUs and "
            f"{has.get('GPU', 0):g} GPUs; lower workers_per_trial, gpus_per_trial or "
            "run.cluster.cpus_per_worker"
        )
    asked = config.max_concurrent or fits
    return asked if workers == 1 else min(asked, fits), "cuda" if on_gpu else "cpu"


def run_trials(
    context: TrialContext, concurrent: int, before: Sequence[TrialRecord], display: Display
) -> list[TrialRecord]:
    """Run what is left of the trials after `before`, so many at a time; returns all of them."""
    config, base, folder = context.config, context.base, Path(context.folder)
    ended_before = sum(record.ended for record in before)
    if ended_before >= config.trials:
        return list(before)
    searcher = JournalSearch(
        open_journal(folder, write=True),
        folder.name,
        base,
        config.space,
        source="cache" if base.backbone.train == "none" else "pixels",
        seed=config.seed,
    )
    if config.workers_per_trial == 1:
        resources = {"CPU": max(config.run.cluster.cpus_per_worker, 0.001)}
        resources |= {"GPU": config.gpus_per_trial} if context.device == "cuda" else {}
    else:
        # Any part of a CPU for the drivers would leave too little for the workers of the last trial
        # that fits, and all would wait for ever.
        resources = {"node:__internal_head__": 0.001}
    scheduler = Halving(
        before,
        max_t=base.training.epochs,
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction_factor,
    )
    began = time.monotonic()
    interactive = display.console.is_terminal
    with display.stage("search", config.trials) as stage:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(tune_trial, context=[ray.put(context)]),
                tune.PlacementGroupFactory([resources]),
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=config.trials - ended_before,
                max_concurrent_trials=concurrent,
                reuse_actors=config.workers_per_trial == 1,
                trial_dirname_creator=lambda trial: trial.config["trial"],
                trial_name_creator=lambda trial: trial.config["trial"],
            ),
            run_config=tune.RunConfig(
                name=f"tune-{time.time_ns()}",  # an attempt is never restored by Ray Tune
                storage_path=str(folder / "ray"),
                verbose=0,
                callbacks=[TrialCallback(folder, searcher, stage, interactive=interactive)],
                failure_config=tune.FailureConfig(max_failures=config.max_failures),
            ),
        )
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        tuner.fit()
        shutil.rmtree(folder / "ray", ignore_errors=True)
        records, seconds = trials_of(searcher.study), time.monotonic() - began
        ended = sum(record.ended for record in records)
        timing = {
            "trials": ended - ended_before,
            "trials_per_minute": round(60 * (ended - ended_before) / max(seconds, 1e-9), 3),
            "seconds": round(seconds, 3),
            "concurrent": concurrent,
            "device": context.device,
        }
        write_json(folder / "search.json", timing)
        if ended < config.trials:
            raise Interrupted
        stage.summary = f"{ended} trials, {timing['trials_per_minute']:.1f} a minute"
    return records
