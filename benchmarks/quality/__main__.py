"""The ablation: what each part of the method adds, on any packed data sets, beside controls.

    python -m benchmarks.quality --config configs/cifar100.yaml --splits 5 --work data/quality

Draws of the unseen classes from data.split_seed (or 0) upwards are whole runs by `python -m tune
repeat`: all rows, each source of knowledge, the ridge, and the choice of both. Beside them the
ablation trains heads on cached features of the frozen backbone, in this process. Every
hyper-parameter of the zero-shot models is chosen on seen classes. Each result is stored in --work,
so that an interrupted run goes on where it stopped.
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

from benchmarks.quality.knowledge import evaluate_variants
from benchmarks.quality.page import page
from benchmarks.quality.run import Task, run, store, task_of
from benchmarks.quality.settings import DEFAULT, SHUFFLED, Setting, settings_of
from benchmarks.quality.values import Ablation, Outcome
from vgse.config import RunConfig, to_dict
from vgse.files import read_mapping, write_json, written_whole

RESULTS = Path(__file__).resolve().parents[1] / "results"
QUICK_EPOCHS = 8


def make_parser() -> ArgumentParser:
    """The command line; every field of the configuration can be set as --section.field."""
    parser = ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__.splitlines()[0] if __doc__ else "",
        allow_abbrev=False,
    )
    parser.add_argument("--splits", type=int, default=5, help="Draws of the unseen classes.")
    parser.add_argument(
        "--settings",
        type=str,
        nargs="*",
        help="Those of the ablation, such as kmeans shuffled; all by default, none if empty: the "
        "page of the whole runs alone.",
    )
    parser.add_argument("--config", action="config", help="YAML file of a run's configuration.")
    parser.add_argument(
        "--words", type=str, nargs="*", default=[], help="Further word-vector files."
    )
    parser.add_argument("--work", type=Path, default=Path("data/quality"))
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.md")
    parser.add_argument("--note", default="", help="A sentence for the page, such as on the words.")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="Few settings and epochs, on the classes that were packed as unseen; no whole runs.",
    )
    parser.add_argument(
        "--stored",
        action="store_true",
        help="Compute nothing: the page of those rows that are stored for every split.",
    )
    parser.add_class_arguments(RunConfig, as_group=False, skip={"storage", "cluster", "tracking"})
    return parser


def tasks_of(settings: list[Setting], seeds: list[int | None], work: Path) -> list[list[Task]]:
    """The tasks of each setting, one a split; settings that do not fit the data are left out.

    Raises:
        ValueError: data that cannot be used.
    """
    found = []
    for setting in settings:
        try:
            found.append([task_of(setting, seed, work) for seed in seeds])
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
        split, label = task.split, task.setting.label
        result = run(task, work, lambda text: print(f"    {text}", flush=True))
        clusters = result["clusters"]
        left = (time.monotonic() - started) / number * (len(todo) - number)
        print(
            f"[{number}/{len(todo)}] {split}, {label}: NMI {100 * clusters['nmi']:.1f}, nearest "
            f"class mean {100 * clusters['nearest_class_mean']:.1f} ({result['seconds']:.0f} s); "
            f"about {left / 60:.0f} min left",
            flush=True,
        )


def whole_runs(
    config: RunConfig, tasks: list[list[Task]], splits: int, work: Path, *, stored: bool
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Do what is left of the repeat and, unless only what is `stored` counts, of the rows on
    knowledge; the runs are the results of the default setting, too. Returns repeat.json, and a
    RunResult by run."""
    from tune.repeat import FILE, repeat

    folder = work / "splits"
    config = replace(config, storage=str(work))
    repeat(config, folder.name, splits=splits, resume=(folder / FILE).is_file())
    content = read_mapping(folder / "repeat.json")
    known = {}
    for name in content["runs"]:
        file = work / "knowledge" / f"{name}.json"
        if file.is_file() or not stored:
            known[name] = vars(evaluate_variants(folder / name, file))
            print(f"{name}: sources and ridge are measured", flush=True)
    (default,) = [row for row in tasks if row[0].setting.name == DEFAULT]
    for task in default:
        store(task, read_mapping(folder / task.split / "evaluation.json"), 0.0)
    return content, known


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
                "name": task.split,
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
    splits, names, words, work, out, note, quick, stored = (
        options.pop(name)
        for name in ("splits", "settings", "words", "work", "out", "note", "quick", "stored")
    )
    options.pop("config", None)
    config = RunConfig(**vars(options))
    first = config.data.split_seed or 0
    seeds: list[int | None] = [None] if quick else list(range(first, first + splits))
    if quick:
        epochs = min(config.training.epochs, QUICK_EPOCHS)
        config = replace(config, training=replace(config.training, epochs=epochs))
    try:
        settings = settings_of(config, words, quick=quick)
        if names is not None:
            always = (DEFAULT, SHUFFLED) if names else (DEFAULT,)
            settings = [s for s in settings if s.name in (*always, *names)]
        tasks = tasks_of(settings, seeds, work)
        spread, known = None, {}
        if not quick:
            spread, known = whole_runs(config, tasks, splits, work, stored=stored)
        if stored:
            tasks = [row for row in tasks if all(task.done for task in row)]
            if names != []:
                check_stored(tasks, work)
        else:
            measure(tasks, work)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ablation = gather(tasks, config, note)
    if spread is not None:
        ablation = replace(ablation, repeat=spread, knowledge=known)
    text = page(ablation)
    with written_whole(out) as stream:
        stream.write(text.encode())
    write_json(out.with_suffix(".json"), ablation.to_dict())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
