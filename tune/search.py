"""A search from its configuration to its winner: trials under Ray Tune, then the finalists."""

import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray import tune

from distributed.cluster import ray_cluster
from distributed.display import Display
from distributed.features.extract import run_features
from distributed.setup import Prepared, prepare
from tune.callbacks import SearchDisplay, TrialCallback
from tune.config import SearchConfig, check_search, search_folder
from tune.finalists import score_finalists
from tune.resources import concurrent_trials, search_cluster, trial_resources
from tune.scheduler import Halving
from tune.search_folder import check_folder, write_best, write_config
from tune.searcher import JournalSearch
from tune.space import check_space_fits, with_params
from tune.study import TrialRecord, open_journal, ranked, trials_of
from tune.trial.context import TrialContext, make_context, trial_base
from tune.trial.trainable import tune_trial
from vgse.config import RunConfig
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
    """Run all trials, retrain the best ones, and return the search folder.

    With `resume` trials that ended stay, and interrupted ones go on from their last epoch.
    """
    check_search(config)
    prepared = prepare(trial_base(config))
    check_space_fits(config.space, prepared)
    folder = search_folder(config, search_id)
    check_folder(folder, config, resume=resume)
    with disk_errors_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    with ExitStack() as open_things:
        open_things.enter_context(sole_user(folder))
        records = check_folder(folder, config, resume=resume)  # once more: another may have begun
        write_config(folder, config)
        with Display() as display:
            display.line(_describe(config, prepared, records))
            with display.stage("ray") as stage:
                # Ray Train asks the dashboard whether a run was killed, and frees its CPUs then.
                nested = config.workers_per_trial > 1
                open_things.enter_context(
                    ray_cluster(search_cluster(config), verbose=verbose, dashboard=nested)
                )
                concurrent, device = concurrent_trials(config, display.line)
                stage.summary = f"{concurrent} trials at a time, on {device}"
            spec, features = run_features(
                _with_largest_start(config), prepared, device == "cuda", display, ["train"]
            )
            context = make_context(config, prepared, spec, features, folder, device)
        with disk_errors_in_one_line(folder):
            records = run_trials(context, concurrent, records)
        best = ranked(records)
        if not best:
            raise UserError(f"{folder}: no trial came to an end; see the causes in search.html")
        write_best(folder, config.run, best[0])
        score_finalists(config, folder, records)
    return folder


def run_trials(
    context: TrialContext, concurrent: int, before: Sequence[TrialRecord]
) -> list[TrialRecord]:
    """Run what is left of the trials after `before`, so many at a time; returns all of them."""
    config, base, folder = context.config, context.base, Path(context.folder)
    left = config.trials - sum(record.ended for record in before)
    if left <= 0:
        return list(before)
    epochs = base.training.epochs
    searcher = JournalSearch(
        open_journal(folder, write=True),
        folder.name,
        base,
        config.space,
        source="cache" if base.backbone.train == "none" else "pixels",
        seed=config.seed,
    )
    began = time.monotonic()
    with SearchDisplay(config.trials, config.objective, before) as display:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(tune_trial, context=[ray.put(context)]),
                trial_resources(config, context.device),
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=Halving(epochs, config.grace_epochs, config.reduction_factor, before),
                num_samples=left,
                max_concurrent_trials=concurrent,
                reuse_actors=config.workers_per_trial == 1,
                trial_dirname_creator=_name_of,
                trial_name_creator=_name_of,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{time.time_ns()}",  # an attempt is never restored by Ray Tune
                storage_path=str(folder / "ray"),
                verbose=0,
                callbacks=[TrialCallback(folder, searcher, display)],
                failure_config=tune.FailureConfig(max_failures=config.max_failures),
                checkpoint_config=tune.CheckpointConfig(),
            ),
        )
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        tuner.fit()
    shutil.rmtree(folder / "ray", ignore_errors=True)
    records = trials_of(searcher.study)
    ended, seconds = sum(record.ended for record in records), time.monotonic() - began
    done = ended - sum(record.ended for record in before)
    timing = {
        "trials": done,
        "trials_per_minute": round(60 * done / max(seconds, 1e-9), 3),
        "seconds": round(seconds, 3),
        "concurrent": concurrent,
        "device": context.device,
    }
    write_json(folder / "search.json", timing)
    if ended < config.trials:
        raise Interrupted
    return records


def _name_of(trial: Any) -> str:
    return str(trial.config["trial"])


def _with_largest_start(config: SearchConfig) -> RunConfig:
    """The base with the largest start that a trial can ask for: of a backbone that learns, only a
    sample of the features is cached."""
    fields = ("model.num_clusters", "model.max_points_per_centroid")
    largest = {name: int(config.space[name].highest) for name in fields if name in config.space}
    return with_params(trial_base(config), largest)


def _describe(config: SearchConfig, prepared: Prepared, records: Sequence[TrialRecord]) -> str:
    ended = sum(record.ended for record in records)
    there = f", {ended} of them there already" if ended else ""
    return (
        f"{prepared.manifest.source or prepared.manifest.url}: {config.trials} trials{there}, "
        f"{config.objective} of {len(prepared.val)} validation classes after training on "
        f"{len(prepared.trained)} others"
    )
