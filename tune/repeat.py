"""One configuration over several class splits, or several seeds: `python -m tune repeat`.

A repetition is a whole run, with a folder of its own: what a run goes on from is all that an
interrupted repeat needs, and its evaluation.json is all that the table is made of.
"""

import logging
import os
import traceback
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from rich.text import Text

from distributed.cluster import describe_failure, ray_cluster
from distributed.display import Display
from distributed.features.extract import run_features
from distributed.logs import shown_in_file
from distributed.run import is_finished, train
from distributed.setup import prepare, record_roles
from shards.objects import is_remote
from tune.config import SearchConfig, check_unchanged, write_yaml
from tune.report.spread import MEASURES, read_spread, spread_table, write_spread
from tune.search import concurrent_trials
from vgse.config import RunConfig, check_name, to_dict, validate
from vgse.errors import UserError
from vgse.files import disk_errors_in_one_line, read_mapping, sole_user

FILE = "repeat.yaml"
_CHANGEABLE = ("splits", "seeds", "cluster.", "tracking.")


def repetitions(config: RunConfig, splits: int, seeds: int) -> dict[str, RunConfig]:
    """The configuration of each run by its name: `splits` draws of the unseen classes from
    data.split_seed (or 0) upwards, or `seeds` seeds from the configured one upwards."""
    if (splits > 0) == (seeds > 0) or max(splits, seeds) < 2:
        raise UserError("give --splits N or --seeds N, with N of at least 2")
    if seeds:
        return {f"seed-{n}": replace(config, seed=n) for n in _counted(config.seed, seeds)}
    if config.data.unseen is not None:
        raise UserError("data.unseen names the unseen classes, and --splits draws them; drop one")
    return {
        f"split-{n}": replace(config, data=replace(config.data, split_seed=n))
        for n in _counted(config.data.split_seed or 0, splits)
    }


def _counted(first: int, count: int) -> range:
    return range(first, first + count)


def repeat(
    config: RunConfig,
    repeat_id: str,
    *,
    splits: int = 0,
    seeds: int = 0,
    resume: bool = False,
    verbose: bool = False,
) -> Path:
    """Do all runs, or with `resume` what is left of them; returns the page with their table."""
    check_name("--repeat-id", repeat_id)
    validate(config)
    if is_remote(config.storage):
        raise UserError(
            f"storage is {config.storage}; the folder of a repeat must lie on a disk that all "
            "nodes share"
        )
    runs = repetitions(config, splits, seeds)
    first = prepare(next(iter(runs.values())))
    config = config if splits else record_roles(config, first)
    folder = (Path(config.storage) / repeat_id).absolute()
    content = to_dict(config) | {"splits": splits, "seeds": seeds}
    before = read_mapping(folder / FILE)
    check_unchanged(
        *(folder / FILE, content, to_dict(RunConfig()), _CHANGEABLE),
        resume=resume,
        what="repeat",
        option="--repeat-id",
    )
    if before and bool(before.get("splits")) != bool(splits):
        raise UserError(f"{folder}: repeats {'splits' if before['splits'] else 'seeds'}; go on so")
    with disk_errors_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(sole_user(folder))
        write_yaml(folder / FILE, content)
        display = stack.enter_context(Display())
        left = [name for name in runs if not is_finished(folder / name)]
        display.line(
            Text.assemble(
                (first.manifest.source or first.manifest.url, "bold"),
                f": {len(runs)} {'class splits' if splits else 'seeds'} of {len(first.seen)} seen "
                f"and {len(first.unseen)} unseen classes, {len(runs) - len(left)} there already",
            )
        )
        causes: dict[str, str] = {}
        if left:
            stack.enter_context(ray_cluster(config.cluster, verbose=verbose, dashboard=True))
            workers = config.cluster.num_workers
            as_trials = SearchConfig(run=config, workers_per_trial=workers, gpus_per_trial=1)
            concurrent, device = concurrent_trials(as_trials, display.line)
            if config.backbone.train == "none":  # or all would compute the same features
                run_features(config, first, device == "cuda", display)
            causes = _run_all({name: runs[name] for name in left}, folder, concurrent, display)
        done = [name for name in runs if is_finished(folder / name)]
        if len(done) < 2:
            why = "; ".join(f"{name}: {cause}" for name, cause in causes.items())
            raise UserError(f"{folder}: {len(done)} of {len(runs)} runs came to an end ({why})")
        spread = read_spread(folder, done, "split" if splits else "seed")
        for measure in MEASURES:
            display.console.print(spread_table(spread, measure))
        for name, cause in causes.items():
            display.line(Text.assemble((name, "yellow"), f" is not in the table: {cause}"))
        return write_spread(folder, spread, causes)


def _run_all(
    runs: dict[str, RunConfig], folder: Path, concurrent: int, display: Display
) -> dict[str, str]:
    """Do runs in processes of the cluster, so many at a time; returns why those failed that did."""
    # One whose process dies goes on in another. What a run takes is its workers' and tasks'.
    task = ray.remote(num_cpus=0, max_retries=1)(run_repetition)
    causes: dict[str, str] = {}
    waiting, flying = list(runs), dict[Any, str]()
    with display.stage("repeat", len(runs)) as stage:
        while waiting or flying:
            while waiting and len(flying) < concurrent:
                name = waiting.pop(0)
                flying[task.remote(runs[name], str(folder), name, os.getcwd())] = name
                stage.say(f"{name} began")
            (ended,), _ = ray.wait(list(flying))
            name = flying.pop(ended)
            try:
                cause = ray.get(ended)
            except ray.exceptions.RayError as error:  # a bug shows its traceback in the log
                cause = describe_failure(error)
            if cause:
                causes[name] = cause
            stage.advance(1)
            stage.say(f"{name} {f'failed: {cause}' if cause else 'ended'}")
        stage.summary = f"{len(runs) - len(causes)} runs"
    return causes


def run_repetition(config: RunConfig, folder: str, name: str, where: str) -> str | None:
    """One run, driven from a process of the cluster, which writes to a log what a terminal would
    show; returns what a user has to mend, if anything."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    if os.path.isdir(where):  # paths of the configuration count from there
        os.chdir(where)
    with shown_in_file(Path(folder, f"{name}.log")) as stream:
        try:
            train(replace(config, storage=folder), name)
        except UserError as error:
            return str(error)
        except Exception:
            traceback.print_exc(file=stream)
            raise
    return None
