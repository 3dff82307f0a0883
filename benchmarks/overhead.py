"""What Ray Train adds to an epoch, against the same loop under torchrun.

    python -m benchmarks.overhead

One worker, which leaves a core of two to Ray's own processes, and two workers, which do not,
fine-tune the backbone on the demo's pixels, so that an epoch takes more than a minute. Both
sides run `distributed.train.trainer.train_epochs` with DDP over gloo on the same data and in the
same order, and write a checkpoint after each epoch: Ray Train uploads it into its run folder while
training goes on, torchrun's rank 0 moves it before the next epoch. The two run at the same time
in turns of a few seconds, one stopped while the other runs (`benchmarks.turns`), so that a machine
that is slow for a minute is slow for both. An epoch is timed from the end of one report to the end
of the next, the first one left out; its CPU time is that of the workers. It writes
`benchmarks/results/overhead.md`.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.turns import Tree, take_turns
from distributed.features.cache import feature_spec
from distributed.setup import prepare
from distributed.train.ray_trainer import ddp_options, training_job
from distributed.train.trainer import TrainingJob, train_epochs
from vgse.config import BackboneConfig, ClusterConfig, DataConfig, RunConfig, TrainingConfig
from vgse.images.devices import cpu_precision
from vgse.training.model import TrainingModel

RESULTS = Path(__file__).parent / "results"
SIDES = ("ray", "torchrun")
CPU = torch.device("cpu")

Found = dict[str, list[dict[str, Any]]]
"""For each side what every round measured."""


@dataclass
class Clock:
    """What one worker notes at the end of every epoch; clocks are time.perf_counter's."""

    ends: list[float] = field(default_factory=list)  # of the reports
    cpu: list[float] = field(default_factory=list)  # seconds used since the process began
    reports: list[float] = field(default_factory=list)  # when they began
    losses: list[float] = field(default_factory=list)

    def epoch_ended(self, loss: float, report_began: float) -> None:
        """Note an epoch; call it when its report is done."""
        self.ends.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.reports.append(report_began)
        self.losses.append(loss)

    def save(self, path: Path) -> None:
        """Write the notes as JSON."""
        path.write_text(json.dumps(vars(self)))


def parallel(model: TrainingModel) -> nn.Module:
    """The model under DDP, as Ray Train's prepare_model makes it for our workers."""
    return DistributedDataParallel(model, **ddp_options())


def ray_worker(arguments: dict[str, Any]) -> None:
    """A Ray Train worker: `distributed.train.ray_trainer` with a clock in its report."""
    import ray.train

    clock, job = Clock(), arguments["job"]
    rank = ray.train.get_context().get_world_rank()

    def report(row: dict[str, Any], folder: Path | None) -> None:
        began = time.perf_counter()
        ray.train.report(
            row,
            checkpoint=ray.train.Checkpoint.from_directory(folder) if folder else None,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )
        clock.epoch_ended(row["loss"], began)

    train_epochs(job, CPU, rank, None, report, parallel)
    clock.save(Path(arguments["times"]) / f"rank{rank}.json")


def run_ray(job: TrainingJob, times: Path) -> None:
    """One whole run under Ray Train, on a Ray of its own."""
    import ray.train
    from ray.train import CheckpointConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from distributed.cluster import ray_cluster

    with ray_cluster(job.config.cluster):
        TorchTrainer(
            ray_worker,
            train_loop_config={"job": job, "times": str(times)},
            scaling_config=ScalingConfig(
                num_workers=job.config.cluster.num_workers, resources_per_worker={"CPU": 1}
            ),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=str(times),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        ).fit()


def run_torchrun_worker(job: TrainingJob, times: Path) -> None:
    """One of torchrun's workers."""
    torch.distributed.init_process_group("gloo")
    clock, rank = Clock(), torch.distributed.get_rank()
    kept: list[Path] = []

    def report(row: dict[str, Any], folder: Path | None) -> None:
        began = time.perf_counter()
        if folder is not None:
            target = times / f"checkpoint-{row['epoch']}"
            shutil.move(folder, target)
            kept.append(target)
            if len(kept) > 2:
                shutil.rmtree(kept.pop(0))
        torch.distributed.barrier()
        clock.epoch_ended(row["loss"], began)

    train_epochs(job, CPU, rank, None, report, parallel)
    clock.save(times / f"rank{rank}.json")
    torch.distributed.destroy_process_group()


def make_config(options: argparse.Namespace, num_workers: int) -> RunConfig:
    """Fine-tuning of the whole backbone, from pixels."""
    return RunConfig(
        data=DataConfig(
            shards=options.shards, words=options.words, cache=str(options.work / "features")
        ),
        backbone=BackboneConfig(train="all"),
        training=TrainingConfig(epochs=options.epochs, batch_size=64),
        cluster=ClusterConfig(num_workers=num_workers, use_gpu="no"),
        storage=str(options.work / "runs"),
    )


def find_clusters(config: RunConfig) -> None:
    """k-means into the folder that both sides start from."""
    from distributed.cluster import ray_cluster
    from distributed.display import Display
    from distributed.features.extract import run_features
    from distributed.features.kmeans_init import has_start, run_kmeans
    from distributed.features.sample import run_sample

    prepared = prepare(config)
    with ray_cluster(config.cluster), Display() as display:
        start = start_folder(config)
        sample = None if has_start(str(start)) else run_sample(config, prepared)
        spec, folder = run_features(config, prepared, False, display, sample=sample)
        job = training_job(config, prepared, spec, folder, start)
        run_kmeans(job, prepared, False, display, sample)


def start_folder(config: RunConfig) -> Path:
    """Where the clusters to start from lie, as `init/`."""
    return Path(config.storage).absolute() / "start"


def make_job(config: RunConfig) -> TrainingJob:
    """The job of both sides; a backbone that learns reads no features from a cache."""
    precision = cpu_precision(config.backbone.precision)
    spec = feature_spec(config.backbone, precision)
    run = start_folder(config)
    return training_job(config, prepare(config), spec, Path("unused"), run)


def compare(options: argparse.Namespace) -> dict[int, Found]:
    """Runs of both sides in turns; returns what was measured, by number of workers."""
    find_clusters(make_config(options, 2))
    return {num_workers: _rounds(options, num_workers) for num_workers in options.workers}


def _rounds(options: argparse.Namespace, num_workers: int) -> Found:
    found: Found = {side: [] for side in SIDES}
    for number in range(options.rounds):
        trees = {}
        # The side that begins changes, in case that matters.
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            times = options.work / f"{side}-{num_workers}-{number}"
            times.mkdir()
            trees[side] = Tree(_start(side, num_workers, times, options))
        take_turns(trees, options.turn)
        for side, tree in trees.items():
            times = options.work / f"{side}-{num_workers}-{number}"
            files = [times / f"rank{rank}.json" for rank in range(num_workers)]
            measured = summarise([json.loads(file.read_text()) for file in files], tree)
            found[side].append(measured)
            print(
                f"workers: {num_workers}, round {number + 1} of {options.rounds}, {side}: "
                f"{_describe(measured)}",
                flush=True,
            )
    return found


def _start(
    side: str, num_workers: int, times: Path, options: argparse.Namespace
) -> subprocess.Popen[bytes]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # At a fixed address: torchrun's own rendezvous has heartbeats, which a stopped process misses.
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={num_workers}"]
    launcher += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    given = [f"--{name}={getattr(options, name)}" for name in ("shards", "words", "epochs", "work")]
    return subprocess.Popen(
        [
            *(sys.executable, *([] if side == "ray" else launcher), "-m", "benchmarks.overhead"),
            *(f"--side={side}", f"--times={times}", f"--workers={num_workers}", *given),
        ],
        # Ray runs its workers at niceness 15: beside other work on the machine that would be
        # measured, not Ray Train.
        env={**os.environ, "RAY_worker_niceness": "0"},
    )


def summarise(ranks: list[dict[str, Any]], tree: Tree) -> dict[str, Any]:
    """Every epoch but the first: seconds, CPU seconds of all workers, seconds in the report; of
    the whole run its seconds and losses, and the CPU seconds a second of Ray's own processes."""
    first, epochs = ranks[0], range(1, len(ranks[0]["ends"]))
    return {
        "wall": [tree.seconds(first["ends"][n - 1], first["ends"][n]) for n in epochs],
        "cpu": [sum(rank["cpu"][n] - rank["cpu"][n - 1] for rank in ranks) for n in epochs],
        "report": [tree.seconds(first["reports"][n], first["ends"][n]) for n in epochs],
        "run": [sum(stop - start for start, stop in tree.turns)],
        "losses": first["losses"],
        "own": _own_processes(tree, first["ends"][0], first["ends"][-1]),
    }


def _own_processes(tree: Tree, start: float, stop: float) -> float:
    """CPU seconds a second, between two times, of what Ray runs beside the workers."""
    inside = [n for n, turn in enumerate(tree.turns) if start <= turn[0] and turn[1] <= stop]
    if len(inside) < 2:
        return float("nan")
    before, after = tree.used[inside[0]], tree.used[inside[-1]]
    own = [name for name in after if "ray::" in name or "/ray/" in name]
    spent = sum(after[name] - before.get(name, 0.0) for name in own if "RayTrainWorker" not in name)
    return spent / tree.seconds(tree.turns[inside[0]][1], tree.turns[inside[-1]][1])


def _describe(measured: dict[str, Any]) -> str:
    return (
        f"epochs {', '.join(f'{seconds:.1f}' for seconds in measured['wall'])} s, "
        f"{', '.join(f'{seconds:.1f}' for seconds in measured['cpu'])} CPU s, report "
        f"{statistics.median(measured['report']):.2f} s, run {measured['run'][0]:.0f} s, "
        f"Ray's own processes {measured['own']:.3f} CPU s a second"
    )


def ratios(found: Found, name: str) -> list[float]:
    """Ray's figure divided by torchrun's, for every epoch or run of every round."""
    return [
        ours / plain
        for ray, torchrun in zip(found["ray"], found["torchrun"], strict=True)
        for ours, plain in zip(ray[name], torchrun[name], strict=True)
    ]


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _middle(found: Found, side: str, name: str) -> float:
    return statistics.median(value for measured in found[side] for value in measured[name])


def markdown(results: dict[int, Found], options: argparse.Namespace) -> str:
    """The committed page."""
    cores = len(os.sched_getaffinity(0))
    lines = [
        "# What Ray Train adds to an epoch",
        "",
        f"By `python -m benchmarks.overhead`: for each number of workers {options.rounds} x a run "
        f"of {options.epochs} epochs under Ray Train beside one under torchrun, DDP over gloo, "
        "the same loop, data and order, a checkpoint an epoch. The two take turns of "
        f"{options.turn:g} s, one stopped while the other runs, so that both meet the same "
        "machine. Ratios are Ray Train / torchrun of the same epoch of a round, the first epoch "
        "left out: median (smallest to largest). The target is below 1.03 for an epoch of more "
        "than a minute.",
        "",
        f"| workers, on {cores} cores | an epoch | its CPU time, workers alone | whole run with "
        "start-up | Ray's own processes, share of a core | an epoch under torchrun |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for num_workers, found in results.items():
        own = statistics.median(measured["own"] for measured in found["ray"])
        lines.append(
            f"| {num_workers} | {_spread(ratios(found, 'wall'))} | {_spread(ratios(found, 'cpu'))} "
            f"| {_spread(ratios(found, 'run'))} | {own:.1%} "
            f"| {_middle(found, 'torchrun', 'wall'):.0f} s |"
        )
    below = [str(n) for n, f in results.items() if statistics.median(ratios(f, "wall")) < 1.03]
    below = below or ["no number of"]
    reports = [_middle(found, "ray", "report") for found in results.values()]
    same = all(
        abs(a - b) <= 1e-5 * abs(b)
        for found in results.values()
        for ours, plain in zip(found["ray"], found["torchrun"], strict=True)
        for a, b in zip(ours["losses"], plain["losses"], strict=True)
    )
    lines += [
        "",
        f"A report with its checkpoint took {max(reports):.2f} s under Ray Train. What Ray's own "
        "processes use does not grow with the epoch or the model. Where the workers take every "
        f"core it comes out of theirs. The median is below the target with {' and '.join(below)} "
        "worker(s). Ray's workers "
        "ran at niceness 0, as torchrun's do; Ray's default is 15, which on a machine with other "
        "work costs time that is not Ray Train's.",
        "",
        f"The losses of all epochs are {'equal' if same else '**not equal**'} to a relative 1e-5.",
        "",
        f"Machine: {platform.machine()}, {cores} cores shared with other work, load "
        f"{os.getloadavg()[0]:.1f} at the end; python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "ray"))
        + ".",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Compare both sides and write the page; with --side, be one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--turn", type=float, default=5.0, help="seconds of a turn")
    parser.add_argument("--shards", default="demo/shards")
    parser.add_argument("--words", default="demo/words.txt")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--times", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.shards = str(Path(options.shards).absolute())
    if options.side:
        job = make_job(make_config(options, options.workers[0]))
        run = run_ray if options.side == "ray" else run_torchrun_worker
        run(job, options.times)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options.work = Path(folder)
        page = markdown(compare(options), options)
    (RESULTS / "overhead.md").write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
