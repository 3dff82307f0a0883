"""What Ray Train adds to an epoch, against the same loop under torchrun.

    python -m benchmarks.overhead

Two workers on this machine fine-tune the backbone on the demo's pixels, so that
an epoch takes about a minute. Both sides run `distributed.loop.train_epochs` with DDP over gloo on
the same data and in the same order, and write a checkpoint after each epoch: Ray Train uploads it
into its run folder while training goes on, torchrun's rank 0 moves it before the next epoch.
Whole runs of the two take turns. An epoch is timed from the end of one report to the end of the
next, the first one left out; its CPU time is that of both workers. It writes
`benchmarks/results/overhead.md`.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import platform
import shutil
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

from distributed.features import feature_spec
from distributed.job import TrainingJob
from distributed.loop import train_epochs
from distributed.parallel import ddp_options
from distributed.prepare import prepare
from distributed.stage_training import training_job
from vgse.config import BackboneConfig, ClusterConfig, DataConfig, RunConfig, TrainingConfig
from vgse.devices import resolve_precision
from vgse.model import TrainingModel

RESULTS = Path(__file__).parent / "results"
WORKERS = 2
SIDES = ("ray", "torchrun")
CPU = torch.device("cpu")


@dataclass
class Clock:
    """Times of one worker: wall and CPU seconds of every epoch after the first."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    reports: list[float] = field(default_factory=list)  # seconds in the report alone
    losses: list[float] = field(default_factory=list)
    _last: tuple[float, float] | None = None

    def epoch_ended(self, loss: float, report_began: float) -> None:
        """Note an epoch; call it when its report is done."""
        now, used = time.perf_counter(), time.process_time()
        if self._last is not None:
            self.wall.append(now - self._last[0])
            self.cpu.append(used - self._last[1])
            self.reports.append(now - report_began)
        self.losses.append(loss)
        self._last = now, used

    def save(self, path: Path) -> None:
        """Write the times as JSON."""
        values = {name: getattr(self, name) for name in ("wall", "cpu", "reports", "losses")}
        path.write_text(json.dumps(values))


def parallel(model: TrainingModel) -> nn.Module:
    """The model under DDP, as Ray Train's prepare_model makes it for our workers."""
    return DistributedDataParallel(model, **ddp_options())


def ray_worker(arguments: dict[str, Any]) -> None:
    """A Ray Train worker: `distributed.train_worker` with a clock in its report."""
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
            scaling_config=ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1}),
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


def make_config(shards: str, words: str, work: Path, epochs: int) -> RunConfig:
    """Fine-tuning of the whole backbone, from pixels."""
    return RunConfig(
        data=DataConfig(shards=shards, words=words, cache=str(work / "features")),
        backbone=BackboneConfig(train="all"),
        training=TrainingConfig(epochs=epochs, batch_size=64),
        cluster=ClusterConfig(num_workers=WORKERS, use_gpu="no"),
        storage=str(work / "runs"),
    )


def find_clusters(config: RunConfig) -> None:
    """k-means into the folder that both sides start from."""
    from distributed.cluster import ray_cluster
    from distributed.display import Display
    from distributed.stage_features import run_features
    from distributed.stage_start import run_start

    prepared = prepare(config)
    with ray_cluster(config.cluster), Display() as display:
        spec, folder = run_features(config, prepared, False, display)
        run_start(config, prepared, spec, folder, start_folder(config), False, display)


def start_folder(config: RunConfig) -> Path:
    """Where the clusters to start from lie, as `init/`."""
    return Path(config.storage).absolute() / "start"


def make_job(config: RunConfig) -> TrainingJob:
    """The job of both sides; a backbone that learns reads no features from a cache."""
    precision = resolve_precision(config.backbone.precision, "cpu")
    spec = feature_spec(config.backbone, precision)
    run = start_folder(config)
    return training_job(config, prepare(config), spec, Path("unused"), run)


def compare(options: argparse.Namespace, work: Path) -> dict[str, list[dict[str, Any]]]:
    """Whole runs of both sides in turns; returns what their workers measured."""
    find_clusters(make_config(options.shards, options.words, work, options.epochs))
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        # The side that begins changes, so that a machine that slows down favours neither.
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            times = work / f"{side}-{number}"
            times.mkdir()
            began = time.perf_counter()
            given = ("shards", "words", "epochs")
            options_of_side = [f"--{name}={getattr(options, name)}" for name in given]
            subprocess.run(
                [
                    *(sys.executable, *_launcher(side), "-m", "benchmarks.overhead"),
                    *(f"--side={side}", f"--times={times}", f"--work={work}", *options_of_side),
                ],
                check=True,
            )
            seconds = time.perf_counter() - began
            ranks = [json.loads((times / f"rank{r}.json").read_text()) for r in range(WORKERS)]
            measured = summarise(ranks) | {"run": seconds}
            found[side].append(measured)
            print(f"round {number + 1} of {options.rounds}, {side}: {_describe(measured)}")
    return found


def _launcher(side: str) -> list[str]:
    if side == "ray":
        return []
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORKERS}"]


def summarise(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the epochs of a run; CPU time is added over the workers."""
    cpu = [sum(values) for values in zip(*(rank["cpu"] for rank in ranks), strict=True)]
    return {
        "wall": statistics.median(ranks[0]["wall"]),
        "cpu": statistics.median(cpu),
        "report": statistics.median(ranks[0]["reports"]),
        "losses": ranks[0]["losses"],
    }


def _describe(measured: dict[str, Any]) -> str:
    return (
        f"an epoch {measured['wall']:.1f} s, {measured['cpu']:.1f} CPU s, report "
        f"{measured['report']:.2f} s, run {measured['run']:.0f} s"
    )


def ratio(found: dict[str, list[dict[str, Any]]], name: str) -> tuple[float, float, float]:
    """Median, smallest and largest over the rounds of Ray's figure divided by torchrun's."""
    pairs = zip(found["ray"], found["torchrun"], strict=True)
    ratios = [ours[name] / plain[name] for ours, plain in pairs]
    return statistics.median(ratios), min(ratios), max(ratios)


def markdown(found: dict[str, list[dict[str, Any]]], epochs: int) -> str:
    """The committed page."""
    reports = {side: statistics.median(m["report"] for m in found[side]) for side in SIDES}
    seconds = {side: statistics.median(m["wall"] for m in found[side]) for side in SIDES}
    lines = [
        "# What Ray Train adds to an epoch",
        "",
        f"By `python -m benchmarks.overhead`: {len(found['ray'])} rounds of a run of {epochs} "
        f"epochs under Ray Train and one under torchrun, {WORKERS} workers, DDP over gloo, the "
        "same loop, data and order, a checkpoint an epoch. Ratios are Ray Train / torchrun within "
        "a round: median (smallest to largest).",
        "",
        "| of | ratio | target |",
        "| --- | --- | --- |",
    ]
    targets = {"wall": "< 1.03", "cpu": "", "run": ""}
    labels = {
        "wall": "an epoch",
        "cpu": "CPU time of an epoch, both workers",
        "run": "the whole run with start-up, from command to exit",
    }
    for name, label in labels.items():
        middle, low, high = ratio(found, name)
        lines.append(f"| {label} | {middle:.3f} ({low:.3f} to {high:.3f}) | {targets[name]} |")
    share = (reports["ray"] - reports["torchrun"]) / seconds["torchrun"]
    same = all(
        abs(a - b) <= 1e-5 * abs(b)
        for ours, plain in zip(found["ray"], found["torchrun"], strict=True)
        for a, b in zip(ours["losses"], plain["losses"], strict=True)
    )
    lines += [
        "",
        f"An epoch took {seconds['torchrun']:.0f} s under torchrun here. A report with its "
        f"checkpoint took {reports['ray']:.2f} s under Ray Train and {reports['torchrun']:.2f} s "
        f"under torchrun: {100 * share:+.1f}% of the epoch, which a noisy machine cannot hide.",
        "",
        f"The losses of all epochs are {'equal' if same else '**not equal**'} to a relative 1e-5.",
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores shared with other work, load "
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--shards", default="demo/shards")
    parser.add_argument("--words", default="demo/words.txt")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--times", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.shards = str(Path(options.shards).absolute())
    if options.side:
        config = make_config(options.shards, options.words, options.work, options.epochs)
        job = make_job(config)
        run = run_ray if options.side == "ray" else run_torchrun_worker
        run(job, options.times)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        page = markdown(compare(options, Path(folder)), options.epochs)
    (RESULTS / "overhead.md").write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
