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
from tune.callbacks import Live, TrialCallback
from tune.config import SearchConfig, check, search_folder
from tune.finalists import finish
from tune.resources import Room, check_against_data, cluster_of, find_room
from tune.scheduler import Halving
from tune.search_folder import check_folder, open_folder, write_best
from tune.searcher import JournalSearch
from tune.study import TrialRecord, open_journal, ranked, trials_of
from tune.trial.context import Material, gather, trial_base
from tune.trial.kmeans_stage import run_starts, widest
from tune.trial.trainable import resources_of, tune_trial
from vgse.errors import UserError
from vgse.files import room_for, sole_user, write_json

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial has no objective
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # a resume starts from the trials' files
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

    Args:
        config: the search.
        search_id: name of the search folder below `config.run.storage`.
        resume: go on with a search that is there. Trials that ended stay; interrupted ones go on
            from their last epoch.
        verbose: let Ray's own log through.
        Interrupted: by ^C.
    """
    check(config)
    base = trial_base(config)
    prepared = prepare(base)
    check_against_data(config, prepared)
    folder = search_folder(config, search_id)
    check_folder(folder, config, resume=resume)
    with room_for(folder):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    with ExitStack() as open_things:
        open_things.enter_context(sole_user(folder))
        records = open_folder(folder, config)
        with Display() as display:
            display.line(_describe(config, prepared, records))
            with display.stage("ray") as stage:
                # Ray Train asks the dashboard whether a run was killed, and frees its CPUs then.
                nested = config.workers_per_trial > 1
                open_things.enter_context(
                    ray_cluster(cluster_of(config), verbose=verbose, dashboard=nested)
                )
                room = find_room(config, display.line)
                stage.summary = f"{room.concurrent} trials at a time, on {room.device}"
            spec, features = run_features(
                widest(config, base), prepared, room.device == "cuda", display, ["train"]
            )
            material = gather(config, prepared, spec, features, folder, room.device)
            shared = ray.put(material)
            run_starts(material, shared, display)
        with room_for(folder):
            records = run_trials(material, shared, room, folder, records)
        best = ranked(records)
        if not best:
            raise UserError(f"{folder}: no trial came to an end; see the causes above")
        write_best(folder, config.run, best[0])
        finish(config, folder, records)
    return folder


def run_trials(
    material: Material, shared: Any, room: Room, folder: Path, before: Sequence[TrialRecord]
) -> list[TrialRecord]:
    """Run what is left of the trials; returns all of them.

    Raises:
        Interrupted: by ^C.
    """
    config, base = material.config, material.base
    left = config.trials - sum(record.ended for record in before)
    if left <= 0:
        return list(before)
    epochs = base.training.epochs
    pixels = config.from_pixels or base.backbone.train != "none"
    searcher = JournalSearch(
        open_journal(folder, write=True),
        folder.name,
        base,
        config.space,
        source="pixels" if pixels else "cache",
        seed=config.seed,
    )
    attempt = folder / "ray"
    began = time.monotonic()
    with Live(config.trials, config.objective) as live:
        live.begin(before)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(tune_trial, material=[shared]),
                resources_of(material, base.cluster.cpus_per_worker, room.gpus),
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=Halving(epochs, config.grace_epochs, config.reduction_factor, before),
                num_samples=left,
                max_concurrent_trials=room.concurrent,
                reuse_actors=config.workers_per_trial == 1,
                trial_dirname_creator=_name_of,
                trial_name_creator=_name_of,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{time.time_ns()}",  # an attempt is never restored by Ray Tune
                storage_path=str(attempt),
                verbose=0,
                callbacks=[TrialCallback(folder, searcher, live)],
                failure_config=tune.FailureConfig(max_failures=config.max_failures),
                checkpoint_config=tune.CheckpointConfig(),
            ),
        )
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        tuner.fit()
    shutil.rmtree(attempt, ignore_errors=True)
    done = trials_of(searcher.study)
    _write_timing(folder, done, before, room, time.monotonic() - began)
    if sum(record.ended for record in done) < config.trials:
        raise Interrupted
    return done


def _name_of(trial: Any) -> str:
    return str(trial.config["trial"])


def _write_timing(
    folder: Path,
    records: Sequence[TrialRecord],
    before: Sequence[TrialRecord],
    room: Room,
    seconds: float,
) -> None:
    ended = sum(record.ended for record in records) - sum(record.ended for record in before)
    content = {
        "trials": ended,
        "trials_per_minute": round(60 * ended / max(seconds, 1e-9), 3),
        "seconds": round(seconds, 3),
        "concurrent": room.concurrent,
        "device": room.device,
    }
    write_json(folder / "search.json", content)


def _describe(config: SearchConfig, prepared: Prepared, records: Sequence[TrialRecord]) -> str:
    ended = sum(record.ended for record in records)
    there = f", {ended} of them there already" if ended else ""
    return (
        f"{prepared.manifest.source or prepared.manifest.url}: {config.trials} trials{there}, "
        f"{config.objective} of {len(prepared.val)} validation classes after training on "
        f"{len(prepared.trained)} others"
    )
