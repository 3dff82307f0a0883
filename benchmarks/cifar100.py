"""Quality on CIFAR-100: the commands a user types, for two splits of the classes on one packed set,
against bars and controls.

    python -m benchmarks.cifar100 --images PATH/cifar100

PATH/cifar100 holds train/ and test/ with a folder a class. Every hyper-parameter of the zero-shot
models is chosen on validation classes. ImageNet, on which the backbone was trained, has seen most
of these classes: the table compares rows, it is no clean zero-shot claim.
"""

import argparse
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from benchmarks.quality.run import run as train_setting
from benchmarks.quality.run import task_of
from benchmarks.quality.settings import Setting
from distributed.__main__ import make_parser
from shards.manifest import SPLITS, Manifest, load_manifest
from vgse.config import RunConfig
from vgse.formats import read_npz

RESULTS = Path(__file__).parent / "results"
SPLIT_NAMES = ("main", "rand1")
CONFIG = "configs/cifar100.yaml"


def command(*words: str) -> None:
    """Run a module of this checkout as a user does."""
    subprocess.run([sys.executable, "-m", *words], check=True)


def run_split(images: Path, work: Path, split: str) -> dict[str, Any]:
    """Train and evaluate one split; returns evaluation.json with the control's measures."""
    shards, runs = work / "shards", work / "runs"
    unseen = "configs/cifar100/unseen-{}.txt"
    if not (shards / "manifest.json").is_file():
        command(
            *("shards", "pack", "--source", f"folder:{images}", "--out", str(shards)),
            *("--unseen", unseen.format(SPLIT_NAMES[0]), "--patches", "grid"),
            *("--short_side", "128", "--upscale", "true", "--title", "CIFAR-100"),
            *("--synsets", "configs/cifar100/synsets.yaml"),
        )
    run = runs / split
    if not (run / "evaluation.json").is_file():
        command(
            *("distributed", "train", "--config", CONFIG, "--data.shards", str(shards)),
            *("--data.unseen", unseen.format(split), "--storage", str(runs), "--run-id", split),
        )
    evaluation: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    evaluation["shuffled"] = shuffled_control(run)
    evaluation["slsqp"] = difference_to_slsqp(run)
    return evaluation


def load_config(run: Path) -> RunConfig:
    """The configuration of a run folder."""
    parser = make_parser()
    given = parser.parse_args(["train", "--config", str(run / "config.yaml")])
    options = vars(parser.instantiate(given).train)
    return RunConfig(**{name: options[name] for name in RunConfig.__dataclass_fields__})


def shuffled_control(run: Path) -> dict[str, Any]:
    """The cluster measures of the same training with labels dealt out at random."""
    config = load_config(run)
    setting = Setting("shuffled", "shuffled labels", "training", config, shuffled=True)
    work = run.parent / "quality"
    task = task_of(setting, config.data.split_seed, work)
    result = task.result() if task.done else train_setting(task, work, print)
    clusters: dict[str, Any] = result["clusters"]
    return clusters


def difference_to_slsqp(run: Path) -> float:
    """Largest difference of r (alpha = 0) to SciPy's SLSQP over the unseen classes."""
    classes = read_npz(run / "class_embeddings.npz")
    words = classes.word_vectors.astype(np.float64)
    seen, unseen = words[classes.seen], words[classes.unseen]
    with np.load(run / "relations.npz", allow_pickle=False) as file:
        ours = file["paper_smo"]
    worst = 0.0
    for target, r in zip(unseen, ours, strict=True):
        reference = minimize(
            lambda q, w=target: 0.5 * np.sum((w - q @ seen) ** 2),
            np.full(len(seen), 1 / len(seen)),
            jac=lambda q, w=target: -seen @ (w - q @ seen),
            bounds=[(0, 1)] * len(seen),
            constraints={"type": "eq", "fun": lambda q: q.sum() - 1},
            method="SLSQP",
            options={"maxiter": 1000, "ftol": 1e-14},
        )
        worst = max(worst, float(np.abs(reference.x - r).max()))
    return worst


def bars(evaluations: list[dict[str, Any]]) -> list[tuple[str, str, float, bool]]:
    """(check, floor, mean over splits, whether it holds)."""

    def accuracy(row: str) -> float:
        found = [r for e in evaluations for r in e["rows"] if r["name"] == row]
        return float(np.mean([r["results"]["prototype"]["zsl"] for r in found]))

    def measure(part: str, name: str) -> float:
        return float(np.mean([e[part][name] for e in evaluations]))

    nmi, ncm = measure("clusters", "nmi"), measure("clusters", "nearest_class_mean")
    shuffled_nmi = measure("shuffled", "nmi")
    shuffled_ncm = measure("shuffled", "nearest_class_mean")
    gain = accuracy("paper_smo") - accuracy("paper_smo_negative")
    slsqp = max(e["slsqp"] for e in evaluations)
    image_oracle, oracle = accuracy("image_oracle"), accuracy("oracle")
    return [
        ("image-mean oracle, prototype T1", ">= 0.63", image_oracle, image_oracle >= 0.63),
        ("word vectors, prototype T1", ">= 0.24", accuracy("words"), accuracy("words") >= 0.24),
        ("VGSE-SMO, prototype T1", ">= 0.27", accuracy("smo"), accuracy("smo") >= 0.27),
        ("VGSE oracle, prototype T1", ">= 0.53", oracle, oracle >= 0.53),
        ("SMO alpha = 0 minus alpha = -1", ">= 0.04", gain, gain >= 0.04),
        (
            "unseen rows permuted (must fail)",
            "<= 0.09",
            accuracy("permuted"),
            accuracy("permuted") <= 0.09,
        ),
        ("held-out NMI", ">= 0.285", nmi, nmi >= 0.285),
        ("… minus shuffled labels", ">= 0.02", nmi - shuffled_nmi, nmi - shuffled_nmi >= 0.02),
        ("held-out nearest class mean", ">= 0.345", ncm, ncm >= 0.345),
        ("… minus shuffled labels", ">= 0.04", ncm - shuffled_ncm, ncm - shuffled_ncm >= 0.04),
        ("r against SLSQP, largest difference", "< 1e-3", slsqp, slsqp < 1e-3),
    ]


def markdown(evaluations: dict[str, dict[str, Any]], manifest: Manifest) -> str:
    """The committed page."""
    train, test = (manifest.num_images(split) // len(manifest.seen) for split in SPLITS[:2])
    lines = [
        "# CIFAR-100, two splits of 80 seen and 20 unseen classes",
        "",
        "`python -m benchmarks.cifar100 --images PATH/cifar100`. Means over the splits "
        f"{' and '.join(evaluations)}; accuracies are shares. {train} training and {test} test "
        "images a class; of a class that is unseen in the packed split, main, and seen in the "
        f"other, {test} images are divided.",
        "",
        "| check | bar | measured | holds |",
        "| --- | --- | --- | --- |",
    ]
    for name, floor, value, holds in bars(list(evaluations.values())):
        lines.append(f"| {name} | {floor} | {value:.4g} | {'yes' if holds else '**no**'} |")
    for split, evaluation in evaluations.items():
        lines += ["", f"## {split}", "", evaluation["summary"], ""]
        models = evaluation["models"]
        lines.append("| class embedding | " + " | ".join(f"{m} T1 | {m} H" for m in models) + " |")
        lines.append("| --- |" + " --- |" * (2 * len(models)))
        for row in evaluation["rows"]:
            cells = [
                f"{100 * row['results'][m][key]:.1f}"
                for m in models
                for key in ("zsl", "harmonic_mean")
            ]
            lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
        lines += ["", "| clusters, held-out images | trained | k-means | shuffled labels |"]
        lines.append("| --- | --- | --- | --- |")
        for key, label in (("nmi", "NMI"), ("nearest_class_mean", "nearest class mean")):
            ours, control = evaluation["clusters"], evaluation["shuffled"]
            lines.append(
                f"| {label} | {ours[key]:.3f} | {ours[f'{key}_kmeans']:.3f} | {control[key]:.3f} |"
            )
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "ray", "faiss-gpu", "numpy"))
    lines += [
        "",
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} "
        f"threads, Python {platform.python_version()}, {packages}",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run both splits and write the page; exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("data/cifar100-benchmark"))
    options = parser.parse_args()
    work = options.work.absolute()
    evaluations = {
        split: run_split(options.images.absolute(), work, split) for split in SPLIT_NAMES
    }
    page = markdown(evaluations, load_manifest(str(work / "shards")))
    (RESULTS / "cifar100.md").write_text(page)
    print(page)
    return 0 if all(holds for *_, holds in bars(list(evaluations.values()))) else 1


if __name__ == "__main__":
    sys.exit(main())
