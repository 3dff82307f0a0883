"""The ablation: what each part of the method adds, on any packed data sets, beside controls.

    python -m benchmarks.quality --shards A B --config configs/cifar100.yaml

Each of --shards is a packed folder, one split of the classes; figures are means over them. Heads
are trained on cached features of the frozen backbone, in one process and without Ray. Every
hyper-parameter of the zero-shot models is chosen on validation classes. Each result is stored in
--work, so that an interrupted run goes on where it stopped.
"""

import importlib.metadata
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from benchmarks.quality.page import page
from benchmarks.quality.run import Task, run, task_of
from benchmarks.quality.settings import DEFAULT, SHUFFLED, Setting, settings_of
from benchmarks.quality.values import Ablation, Outcome
from vgse.config import RunConfig, to_dict
from vgse.files import write_json, written_whole

RESULTS = Path(__file__).resolve().parents[1] / "results"
QUICK_EPOCHS = 8


def make_parser() -> ArgumentParser:
    """The command line; every field of the configuration can be set as --section.field."""
    parser = ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__.splitlines()[0] if __doc__ else "",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--shards", type=str, nargs="+", required=True, help="Packed folders, one a split."
    )
    parser.add_argument("--config", action="config", help="YAML file of a run's configuration.")
    parser.add_argument(
        "--words", type=str, nargs="*", default=[], help="Further word-vector files."
    )
    parser.add_argument("--work", type=Path, default=Path("data/quality"))
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.md")
    parser.add_argument("--note", default="", help="A sentence for the page, such as on the words.")
    parser.add_argument("--quick", action="store_true", help="Few rows and epochs.")
    parser.add_argument(
        "--stored",
        action="store_true",
        help="Compute nothing: the page of those rows that are stored for every split.",
    )
    parser.add_class_arguments(RunConfig, as_group=False, skip={"storage", "cluster", "tracking"})
    return parser


def tasks_of(settings: list[Setting], shards: list[str], work: Path) -> list[list[Task]]:
    """The tasks of each setting, one a split; settings that do not fit a data set are left out.

    Raises:
        ValueError: a data set that cannot be used, or two of one name.
    """
    names = [Path(url).name for url in shards]
    if len(set(names)) < len(names):
        raise ValueError(f"--shards: two folders are called {max(names, key=names.count)}; rename")
    found = []
    for setting in settings:
        try:
            found.append([task_of(setting, url, work) for url in shards])
        except ValueError as error:
            if setting.group != "clusters":
                raise
            print(f"{setting.label} is left out: {error}")
    return found


def measure(tasks: list[list[Task]], work: Path) -> None:
    """Run what is not stored yet, with a line for each result.

    The default and its control come first: with them, --stored has something to compare.
    """
    first = sorted(tasks, key=lambda row: row[0].setting.name not in (DEFAULT, SHUFFLED))
    missing: dict[Path, Task] = {}
    for task in (task for row in first for task in row):
        missing.setdefault(task.file, task)
    todo = [task for task in missing.values() if not task.done]
    print(f"{len(missing) - len(todo)} of {len(missing)} results are stored in {work}", flush=True)
    started = time.monotonic()
    for number, task in enumerate(todo, 1):
        split, label = Path(task.config.data.shards).name, task.setting.label
        result = run(task, work, lambda text: print(f"    {text}", flush=True))
        clusters = result["clusters"]
        left = (time.monotonic() - started) / number * (len(todo) - number)
        print(
            f"[{number}/{len(todo)}] {split}, {label}: NMI {100 * clusters['nmi']:.1f}, nearest "
            f"class mean {100 * clusters['nearest_class_mean']:.1f} ({result['seconds']:.0f} s); "
            f"about {left / 60:.0f} min left",
            flush=True,
        )


def check_stored(tasks: list[list[Task]], work: Path) -> None:
    """Raises ValueError where what is stored makes no page."""
    names = {row[0].setting.name for row in tasks}
    lacking = [name for name in (DEFAULT, SHUFFLED) if name not in names]
    if lacking:
        raise ValueError(f"{work}: no result of {lacking[0]} for every split; run without --stored")


def gather(tasks: list[list[Task]], config: RunConfig, note: str) -> Ablation:
    """All results, as the page needs them."""
    first = [task.prepared for task in tasks[0]]
    return Ablation(
        outcomes=[
            Outcome(
                row[0].setting.name,
                row[0].setting.label,
                row[0].setting.group,
                [task.result() for task in row],
            )
            for row in tasks
        ],
        splits=[
            {
                "name": Path(task.config.data.shards).name,
                "source": p.manifest.source,
                "seen": len(p.seen),
                "unseen": len(p.unseen),
                "validation": len(p.val),
                "training_images": p.manifest.num_images("train"),
                "fingerprint": p.manifest.fingerprint,
            }
            for task, p in zip(tasks[0], first, strict=True)
        ],
        config=to_dict(config),
        machine=machine(),
        note=note,
    )


def machine() -> str:
    """What the figures were taken on."""
    model = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    packages = ("torch", "torchvision", "numpy", "scipy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def main(arguments: list[str] | None = None) -> int:
    """Run the ablation and write the page; a user's mistake is one line and exit status 2."""
    options: Any = make_parser()
    options = options.instantiate(options.parse_args(arguments))
    shards, words, work, out, note, quick, stored = (
        options.pop(name) for name in ("shards", "words", "work", "out", "note", "quick", "stored")
    )
    options.pop("config", None)
    config = RunConfig(**vars(options))
    if quick:
        epochs = min(config.training.epochs, QUICK_EPOCHS)
        config = replace(config, training=replace(config.training, epochs=epochs))
    try:
        tasks = tasks_of(settings_of(config, words, quick=quick), shards, work)
        if stored:
            tasks = [row for row in tasks if all(task.done for task in row)]
            check_stored(tasks, work)
        else:
            measure(tasks, work)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ablation = gather(tasks, config, note)
    text = page(ablation)
    with written_whole(out) as stream:
        stream.write(text.encode())
    write_json(out.with_suffix(".json"), ablation.to_dict())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
