"""The results of benchmarks.gpu as a page."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from benchmarks.gpu.paths import Setting, Turn

Rounds = list[dict[str, Turn]]

ROWS = {
    "plain forward": "(a) torchvision, forward",
    "plain": "(a) torchvision, forward and backward",
    "plain fixed": "(a) the same with fixed batch statistics, as ours are",
    "embedding": "our pass without gradients, from pixels to assignments",
    "synthetic": "(b) our step, data on the device",
    "unfolded": "(b) with batch norms as layers of their own",
    "accumulated": "(b) in 4 micro-batches",
    "compiled": "(b) with compiled blocks",
    "loaded": "(c) our step, fed from shards",
}


@dataclass
class Results:
    """All that was measured."""

    setting: Setting
    device_name: str
    machine: str
    command: str
    quick: bool
    rounds: Rounds = field(default_factory=list)
    flops: tuple[float, float] = (0.0, 0.0)  # of a patch: forward, forward and backward
    peak_tflops: float | None = None
    memory: dict[str, float] = field(default_factory=dict)  # path -> GB at the most
    cutting: Rounds = field(default_factory=list)
    cutting_gaps: dict[str, float] = field(default_factory=dict)  # way -> grey levels
    clusterings: list[tuple[str, float, float]] = field(default_factory=list)
    clustering_sizes: tuple[int, int, int] = (0, 0, 0)  # n, D, D_v
    largest: dict[str, tuple[int, float]] = field(default_factory=dict)  # path -> images, GB
    counted: tuple[str, int, float, float] | None = None
    """Network, side, bytes that a patch keeps for the backward pass, bytes of the rest."""
    reader: str = ""
    picture_kb: float = 0.0
    loader_workers: int = 0
    cores: int = 0


def spread(values: list[float], digits: int = 2) -> str:
    """Median, and the quartiles in brackets."""
    middle = statistics.median(values)
    if len(values) < 4:
        low, high = min(values), max(values)
    else:
        low, _, high = statistics.quantiles(values, n=4)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def rates(rounds: Rounds, path: str) -> list[float]:
    """Images a second of each round."""
    return [turn[path].images / turn[path].seconds for turn in rounds]


def ratios(rounds: Rounds, path: str, to: str) -> list[float]:
    """Throughput of a path, relative to another's of the same round."""
    pairs = zip(rates(rounds, path), rates(rounds, to), strict=True)
    return [one / other for one, other in pairs]


def render(results: Results) -> str:
    """The page, in Markdown."""
    parts = [_head(results), _targets(results), _steps(results), _memory(results)]
    parts += [_cutting(results), _clusters(results), _notes(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(results: Results) -> str:
    setting = results.setting
    on_gpu = setting.device.type == "cuda"
    note = (
        ""
        if on_gpu
        else (
            "\n\n**A CPU's figures.** They show that the whole program runs, with small sizes, "
            "where neither page-locked copies nor fused kernels nor half precision take part; the "
            "ratios say nothing about a GPU. On a machine with one, which needs torch, torchvision "
            "and this checkout, and no other library,\n\n    python -m benchmarks.gpu\n\nwrites "
            "the page `gpu-<name>.md`, at ResNet-50 and 224 pixels in bfloat16."
        )
    )
    return (
        "# The accelerator: our step beside its backbone's arithmetic\n\n"
        f"By `{results.command}` on {results.device_name}. {results.machine}. "
        f"{setting.backbone} at {setting.side} pixels in {setting.precision}, "
        f"{setting.batch_size} images of N = {setting.num_patches} patches a step; "
        f"{len(results.rounds)} rounds, in which all paths take turns; medians, quartiles in "
        f"brackets (or the range of fewer than four); ratios are taken within a round.{note}"
    )


def _targets(results: Results) -> str:
    rounds = results.rounds
    stall = [turns["loaded"].stall for turns in rounds]
    compiled = []
    if "compiled" in rounds[0]:
        ratio = spread(ratios(rounds, "compiled", "plain"))
        compiled = [f"| b/a with compiled blocks (backbone.compile) | {ratio} | 0.85 |"]
    lines = [
        "| | measured | target on a GPU |",
        "| --- | ---: | ---: |",
        f"| b/a, our step to torchvision's forward and backward | "
        f"{spread(ratios(rounds, 'synthetic', 'plain'))} | 0.85 |",
        f"| the same, to (a) with fixed batch statistics as ours are | "
        f"{spread(ratios(rounds, 'synthetic', 'plain fixed'))} | |",
        f"| the same, to our step with batch norms as layers of their own | "
        f"{spread(ratios(rounds, 'synthetic', 'unfolded'))} | |",
        *compiled,
        f"| c/b, fed from shards to data on the device | "
        f"{spread(ratios(rounds, 'loaded', 'synthetic'))} | 0.90 |",
        f"| loader stall, share of (c) | {spread(stall)} | below 0.05 |",
    ]
    return "## Targets\n\n" + "\n".join(lines)


def _steps(results: Results) -> str:
    setting, rounds = results.setting, results.rounds
    lines = [
        "| | images/s | patches/s | to (a) | TFLOP/s of θ | of the peak | GB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for path, label in ROWS.items():
        if path not in rounds[0]:
            continue
        forward_only = path in ("plain forward", "embedding")
        speeds = rates(rounds, path)
        # A pass that is done twice for want of memory is not counted twice.
        flops = results.flops[0 if forward_only else 1]
        tera = statistics.median(speeds) * setting.num_patches * flops / 1e12
        share = f"{tera / results.peak_tflops:.0%}" if results.peak_tflops else "unknown"
        memory = f"{results.memory[path]:.1f}" if path in results.memory else ""
        base = "plain forward" if forward_only else "plain"
        lines.append(
            f"| {label} | {spread(speeds, 1)} | "
            f"{statistics.median(speeds) * setting.num_patches:,.0f} | "
            f"{spread(ratios(rounds, path, base))} | {tera:,.2f} | {share} | {memory} |"
        )
    peak = (
        f"the device's dense bfloat16 peak is taken as {results.peak_tflops:,.0f} TFLOP/s"
        if results.peak_tflops
        else "the peak of this device is not in the program's table"
    )
    return (
        "## Steps\n\n" + "\n".join(lines) + "\n\n"
        f"θ does {results.flops[0] / 1e9:.2f} GFLOP a patch forward and "
        f"{results.flops[1] / 1e9:.2f} with the backward pass (a multiplication and an addition "
        f"count as two); {peak}. (a) is `torchvision.models.{setting.backbone}` in channels_last "
        "with a cross-entropy, without an optimiser. (b) and (c) are `vgse.training.step.run_step` "
        "with all four losses, the neighbour queue and AdamW. (c) reads "
        f"{results.picture_kb:.0f}-kB pictures by {results.reader} with {results.loader_workers} "
        f"loader processes on {results.cores} cores. GB is the most that is in use on a GPU during "
        "a path's turn, the other paths' weights and inputs included."
    )


def _memory(results: Results) -> str:
    if results.setting.device.type != "cuda":
        return f"## Largest batch\n\nSearched for on GPUs only.{_counted(results)}"
    if not results.largest:
        return _unmeasured("Largest batch")
    lines = ["| | images | patches | GB |", "| --- | ---: | ---: | ---: |"]
    for path, (images, used) in results.largest.items():
        patches = images * results.setting.num_patches
        lines.append(f"| {ROWS[path]} | {images} | {patches:,} | {used:.1f} |")
    return (
        "## Largest batch\n\nThe most images of a step, each with "
        f"{results.setting.num_patches} patches, that fit into the device's memory.\n\n"
        + "\n".join(lines)
        + _counted(results)
    )


def _counted(results: Results) -> str:
    """What 80 GB should hold, from what autograd keeps."""
    if results.counted is None:
        return ""
    name, side, patch, rest = results.counted
    image = results.setting.num_patches * patch
    return (
        f"\n\nCounted rather than measured: a step of {name} at {side} pixels in bfloat16 keeps "
        f"{patch / 1e6:.1f} MB a patch for its backward pass, {image / 1e6:,.0f} MB an image of "
        f"N = {results.setting.num_patches}, beside {rest / 1e9:.1f} GB of weights, gradients and "
        f"moments: 80 GB hold less than {(80e9 - rest) / image:,.0f} images, by what operations "
        "take for a moment."
    )


def _unmeasured(title: str) -> str:
    return f"## {title}\n\nNot measured: the benchmark was ended before."


def _cutting(results: Results) -> str:
    if not results.cutting:
        return _unmeasured("Cutting patches")
    lines = [
        "| (d) | images/s | to cut_patches | grey levels off |",
        "| --- | ---: | ---: | ---: |",
    ]
    for way, gap in results.cutting_gaps.items():
        lines.append(
            f"| {way} | {spread(rates(results.cutting, way), 0)} | "
            f"{spread(ratios(results.cutting, way, 'cut_patches'))} | {gap:.1f} |"
        )
    return (
        "## Cutting patches\n\n" + "\n".join(lines) + "\n\n"
        "On the device, from uint8 pictures, on noise, the hardest case; beside torchvision's "
        "resized_crop for each box. Grey levels off is the largest distance of 255 from cropping "
        "first and resizing then; resized_crop rounds to whole levels."
    )


def _clusters(results: Results) -> str:
    if not results.clusterings:
        return _unmeasured("k-means")
    count, size, clusters = results.clustering_sizes
    best = min(objective for _, _, objective in results.clusterings)
    lines = ["| (e) | seconds | objective | to the best |", "| --- | ---: | ---: | ---: |"]
    for name, seconds, objective in results.clusterings:
        lines.append(f"| {name} | {seconds:.2f} | {objective:.4f} | {objective / best - 1:+.2%} |")
    return (
        f"## k-means\n\n{count:,} unit vectors of {size} values into {clusters} clusters, "
        "20 iterations from a k-means++ start; medians over seeds.\n\n" + "\n".join(lines)
    )


def _notes(results: Results) -> str:
    if not results.quick:
        return ""
    note = "Sizes of `--quick`, chosen to take minutes on two cores."
    if results.setting.device.type == "cpu":
        note += (
            " Rates here are by the CPU time of the training process, since the cores are shared; "
            "the loader's processes are not in it, and the stall is by the clock on the wall."
        )
    return note
