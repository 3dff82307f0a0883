"""Searching on the demo: what the winner is worth, and what a trial costs.

Run `python -m benchmarks.search` (twenty minutes on two quiet cores); it writes
`benchmarks/results/search.md`. Three things are measured:

1. a search of 36 trials, its winner against the default configuration on test images;
2. an epoch of a trial on the feature cache against one from pixels, the same trial function in one
   process, in turns;
3. trials a minute of the search under Ray Tune against a bare Optuna loop over the same trial
   function in one process, in turns.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import platform
import shutil
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import torch
import yaml

from distributed.cluster import ray_cluster
from distributed.display import Display
from distributed.features.cache import access_of, read_unit, write_unit
from distributed.features.extract import load_backbone, patch_features, run_features
from distributed.setup import prepare
from tune.__main__ import make_parser
from tune.config import SearchConfig
from tune.report.search_files import load_search
from tune.report.verdict import headline, judge_ranks
from tune.search import search
from tune.space import draw_params
from tune.study import TrialRecord, read_trials
from tune.trial.context import TrialContext, make_context, trial_base
from tune.trial.trainable import run_trial, trial_job
from vgse.report.page import percent

RESULTS = Path(__file__).parent / "results"
CONFIG = "configs/search-demo.yaml"
COST_EPOCHS = 2
SPEED_EPOCHS = 3
SPEED_TRIALS = 24


def load_config(storage: Path) -> SearchConfig:
    """The shipped search of the demo, with its folder elsewhere."""
    parser = make_parser()
    given = ["search", "--config", CONFIG, "--run.storage", str(storage)]
    options = parser.instantiate(parser.parse_args(given)).search
    for name in ("config", "search_id", "resume", "verbose"):
        options.pop(name, None)
    return SearchConfig(**vars(options))


def with_epochs(config: SearchConfig, epochs: int, **changes: Any) -> SearchConfig:
    """A search without finalists whose trials all do `epochs` epochs."""
    training = replace(config.run.training, epochs=epochs)
    run = replace(config.run, training=training)
    return replace(config, run=run, grace_epochs=epochs, finalists=0, **changes)


def context_of(config: SearchConfig, folder: Path) -> TrialContext:
    """What a search's driver puts together."""
    prepared = prepare(trial_base(config))
    with Display() as display:
        spec, features = run_features(trial_base(config), prepared, False, display, ["train"])
    return make_context(config, prepared, spec, features, folder, "cpu")


def cost(config: SearchConfig, storage: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of an epoch on the cache and from pixels, one round after the other."""
    cached = context_of(with_epochs(config, COST_EPOCHS), storage / "cost")
    trial_job(cached, {})  # k-means is shared by all trials and counts for none
    seconds: dict[str, list[float]] = {"cache": [], "pixels": []}
    pixels = replace(cached, features=str(storage / "pixels"))
    for number in range(rounds + 1):
        for name, context in (("cache", cached), ("pixels", pixels)):
            began = time.monotonic()

            def report(row: dict[str, Any], name: str = name) -> None:
                if name == "pixels" and row["epoch"] < COST_EPOCHS:
                    compute_features(cached, storage / "pixels")

            report({"epoch": 0})
            run_trial(context, f"{name}-{number}", {}, report)
            if number:  # the first round loads and compiles what all others find
                seconds[name].append((time.monotonic() - began) / COST_EPOCHS)
    return seconds


def compute_features(context: TrialContext, folder: Path) -> None:
    """Decode, cut and send through the backbone every patch, as a trainer without a cache does in
    every epoch."""
    spec, access = context.spec, access_of(context.base.data)
    backbone = load_backbone(spec, context.device)
    for unit in context.units:
        known = read_unit(context.features, unit, access)
        with torch.inference_mode():
            patches = patch_features(context.url, unit, spec, backbone, context.device)
        tensors = {
            "labels": known.labels,
            "rows": known.rows,
            "images": known.images,
            "patches": patches.half(),
        }
        write_unit(folder, unit, tensors, {"keys": json.dumps(known.keys)})


def bare_loop(context: TrialContext, number: int) -> float:
    """Trials a minute of Optuna's TPE and the trial function, without Ray."""
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=number)
    )
    began = time.monotonic()
    for count in range(SPEED_TRIALS):
        trial, rows = study.ask(), []
        params = draw_params(trial, context.base, context.config.space)
        run_trial(context, f"bare-{number}-{count}", params, rows.append)
        study.tell(trial, rows[-1]["objective"])
    return 60 * SPEED_TRIALS / (time.monotonic() - began)


def speed(config: SearchConfig, storage: Path, rounds: int) -> dict[str, list[float]]:
    """Trials a minute under Ray Tune and in a bare loop, one round after the other."""
    short = with_epochs(config, SPEED_EPOCHS, trials=SPEED_TRIALS, collapse_share=0.0)
    context = context_of(short, storage / "speed")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, list[float]] = {"ray": [], "bare": []}
    for number in range(rounds):
        folder = search(replace(short, seed=number), f"speed-{number}")
        assert all(r.epoch == SPEED_EPOCHS for r in read_trials(folder)), "trials of equal length"
        found["ray"].append(json.loads((folder / "search.json").read_text())["trials_per_minute"])
        found["bare"].append(bare_loop(context, number))
    return found


def states(records: list[TrialRecord]) -> str:
    """How many trials ended how."""
    names = [record.state for record in records]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(sorted(names)))


def search_part(folder: Path, config: SearchConfig) -> list[str]:
    """The section on the search itself."""
    records, final = read_trials(folder), json.loads((folder / "final.json").read_text())
    timing = json.loads((folder / "search.json").read_text())
    epochs = sum(record.epoch for record in records)
    most = len(records) * config.run.training.epochs
    lines = [
        "## The winner on test",
        "",
        f"{len(records)} trials ({states(records)}) of at most {config.run.training.epochs} "
        f"epochs on the demo, {epochs} epochs in all, {100 * epochs / most:.0f}% of what they "
        f"were without ASHA; {timing['seconds'] / 60:.0f} minutes, {timing['concurrent']} at a "
        f"time. Objective: {config.objective}; T1 is the prototype model's. The rows below were "
        "retrained on all seen classes; test images were opened once for each.",
        "",
        "| configuration | validation % | test zsl % | test u % | test s % | test H % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in final["rows"]:
        test = row["test"] or {}
        cells = [percent(row["validation"])]
        cells += [percent(test.get(n)) for n in ("zsl", "unseen", "seen", "harmonic_mean")]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    lines += ["", *headline(load_search(folder))]
    if sum(row["test"] is not None for row in final["rows"]) > 1:
        lines.append(judge_ranks(load_search(folder)))
    best = yaml.safe_load((folder / "best.yaml").read_text())
    names = sorted(config.space)
    lines += ["", "| field | default | winner |", "| --- | ---: | ---: |"]
    default = records[0].params
    for name in names:
        section, _, field = name.partition(".")
        lines.append(f"| `{name}` | {default[name]:.4g} | {best[section][field]:.4g} |")
    return lines


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=36)
    parser.add_argument("--finalists", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--storage", type=Path, help="where to keep the searches")
    parser.add_argument("--out", type=Path, default=RESULTS / "search.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    storage = options.storage or Path(tempfile.mkdtemp(prefix="vgse-search-"))
    # Trials that are there would cost nothing; the search itself is kept.
    for old in ("cost", "speed", *(f"speed-{number}" for number in range(options.rounds))):
        shutil.rmtree(storage / old, ignore_errors=True)
    config = load_config(storage)
    config = replace(config, trials=options.trials, finalists=options.finalists)
    with ray_cluster(config.run.cluster):
        seconds = cost(config, storage, options.rounds)
        rates = speed(config, storage, options.rounds)
        there = (storage / "search" / "search.yaml").is_file()
        folder = search(config, "search", resume=there)
    ratio = [b / a for a, b in zip(seconds["cache"], seconds["pixels"], strict=True)]
    gain = [a / b for a, b in zip(rates["ray"], rates["bare"], strict=True)]
    packages = ("ray", "optuna", "torch")
    lines = [
        "# Searching on the demo",
        "",
        "By `python -m benchmarks.search`, from `configs/search-demo.yaml`.",
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores shared with other work (load "
        f"{os.getloadavg()[2]:.0f} over the last 15 minutes), no GPU; python "
        f"{platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + ". Absolute times say little here; ratios are of rounds taken in turns.",
        "",
        *search_part(folder, config),
        "",
        "## A trial on the cache against one from pixels",
        "",
        f"The same trial function and configuration in one process, {COST_EPOCHS} epochs a trial, "
        f"{options.rounds} rounds in turns; seconds of an epoch with its objective. From pixels "
        "every epoch decodes the images, cuts their patches and sends them through the backbone. "
        "Both keep their checkpoints and are scored alike; losses are equal.",
        "",
        "| patch features | seconds an epoch, median (range) |",
        "| --- | ---: |",
        f"| from the cache | {spread(seconds['cache'])} |",
        f"| from pixels | {spread(seconds['pixels'])} |",
        f"| pixels / cache, round by round | {spread(ratio)} |",
        "",
        "## Trials a minute, Ray Tune against a bare loop",
        "",
        f"{SPEED_TRIALS} trials of {SPEED_EPOCHS} epochs each, none stopped early, "
        f"{options.rounds} rounds in turns. The search ran {os.cpu_count()} trials at a time and "
        "its time runs from the first trial's placement to the last one's end, the start of its "
        "worker processes included; the bare loop is Optuna's TPE and the same function in one "
        "warm process.",
        "",
        "| | trials a minute, median (range) |",
        "| --- | ---: |",
        f"| search under Ray Tune | {spread(rates['ray'])} |",
        f"| bare Optuna loop | {spread(rates['bare'])} |",
        f"| ratio, round by round | {spread(gain)} |",
    ]
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out)
    if options.storage is None:
        shutil.rmtree(storage)


if __name__ == "__main__":
    main()
