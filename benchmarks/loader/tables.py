"""The tables of `benchmarks.loader`, and whether its targets are met."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.loader.methods import Answer, Method
from shards.loader import Cut

NAMES = {
    "folder": "ImageFolder + DataLoader",
    "webdataset": "webdataset",
    "litdata": "litdata",
    "streaming": "MosaicML streaming",
    "ray": "Ray Data read_webdataset",
    "bare": "bare tar reader",
    "ours": "**ours**",
}
PEERS = ("webdataset", "litdata", "streaming", "ray")
LEAST = {224: 8.0, 96: 4.0}  # speed-up from packed shards
LEAST_ORIGINALS = 3.0
MOST_OVERHEAD = 15  # percent
LABELS = {"packed": "384-px shards", "originals": "original JPEGs"}
RIVALS = ("litdata", "streaming", "ray")
Key = tuple[str, str, str, int]
Ratio = NDArray[np.float64]  # of each round


@dataclass(frozen=True)
class Result:
    """All that was measured.

    shares: of our CPU time by stage, for shards and cut; memory: MB after each epoch;
    kilobytes: a picture in the shards; errors: of peers, by name.
    """

    answers: dict[Method, list[Answer]]
    shares: dict[tuple[str, Cut], dict[str, float]]
    memory: list[float]
    kilobytes: dict[str, float]
    images: int
    errors: dict[str, str]
    machine: str
    sides: tuple[int, ...]

    def milliseconds(self, key: Key) -> Ratio:
        """CPU ms an image, by round; empty if the method failed."""
        answers = next((a for method, a in self.answers.items() if method.key == key), [])
        return np.array([1e3 * seconds / images for seconds, images, _ in answers])

    def kilobytes_handed(self, key: Key) -> float:
        """kB an image between loader and trainer."""
        answers = next(a for method, a in self.answers.items() if method.key == key)
        return sum(size for _, _, size in answers) / sum(n for _, n, _ in answers) / 1e3

    def ratio(self, base: Key, key: Key) -> Ratio:
        """How many times faster than `base`, by round."""
        a, b = self.milliseconds(base), self.milliseconds(key)
        return a / b if len(a) == len(b) else np.array([])


def spread(values: Ratio, digits: int = 1, unit: str = "") -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def render(result: Result) -> str:
    """The result as Markdown."""
    rounds = max(len(answers) for answers in result.answers.values())
    sizes = result.kilobytes
    lines = [
        "# Loader: from stored JPEGs to patches",
        "",
        f"By `python -m benchmarks.loader`: {result.images} pictures of about 500 x 375 "
        f"({sizes['originals']:.0f} kB in the shards of the original files, {sizes['packed']:.0f} "
        "kB in those that `shards pack` makes at its short side of 384, quality 90: these "
        "pictures keep their size), random crops of photographs that ship with scikit-image, "
        f"scikit-learn and matplotlib. N = 9 patches on a grid, batches of 32; {rounds} rounds, in "
        "which all methods take turns in random order; one thread, no loader processes. Figures "
        "are CPU time (of Ray's whole cluster of one core for Ray Data); medians over rounds, "
        "quartiles in brackets; ratios are taken within a round.",
        "",
        f"Machine: {result.machine}.",
        "",
        *as_documented(result),
        *same_cutter(result),
        *reading(result),
        *our_shares(result),
        *memory(result),
        *targets(result),
    ]
    return "\n".join(lines) + "\n"


def row(name: str, cells: list[str]) -> str:
    """A row of a table."""
    return f"| {name} | {' | '.join(cells)} |"


def as_documented(result: Result) -> list[str]:
    """Others with PIL on the original JPEGs, and ours in all its ways."""
    lines = [
        "## Beside the usual way",
        "",
        "Others cut each patch with PIL (torchvision's resized_crop, to_tensor, normalize: float "
        "CHW) from the original JPEGs. The ratio is that to ImageFolder + DataLoader. `one "
        "picture` hands over the whole picture, squeezed to a square, and its boxes; the patches "
        "are cut on the accelerator. Ceilings: decoding alone (simplejpeg into one reused buffer, "
        "nothing read), and decoding and cutting with OpenCV straight into the batch.",
        "",
        row("", [f"{s}: ms | ratio | kB an image" for s in result.sides]),
        "| --- | " + " | ".join(["---: | ---: | ---:"] * len(result.sides)) + " |",
    ]

    def add(name: str, keys: list[Key]) -> None:
        if not len(result.milliseconds(keys[0])):
            lines.append(row(name, [failure(result, keys[0][0])] + [" | | "] * (len(keys) - 1)))
            return
        cells = []
        for side, key in zip(result.sides, keys, strict=True):
            base = "folder", "originals", "pil", side
            cells += [
                f"{np.median(result.milliseconds(key)):.2f}",
                spread(result.ratio(base, key)),
                f"{result.kilobytes_handed(key):,.0f}",
            ]
        lines.append(row(name, cells))

    for who in ("folder", *PEERS):
        add(f"{NAMES[who]} + PIL", [(who, "originals", "pil", side) for side in result.sides])
    for stored, label in LABELS.items():
        add(f"**ours**, patches, {label}", [("ours", stored, "opencv", s) for s in result.sides])
        add(f"**ours**, one picture, {label}", [our_picture(result, stored)] * len(result.sides))
    for stored, label in LABELS.items():
        add(f"decoding alone, {label}", [("decode", stored, "decode", 0)] * len(result.sides))
        floor = [("memory", stored, "opencv", side) for side in result.sides]
        add(f"decoding and cutting alone, {label}", floor)
    return [*lines, ""]


def our_picture(result: Result, stored: str) -> Key:
    """Our "one picture" from these shards."""
    return next(m.key for m in result.answers if m.way == "image" and m.stored == stored)


def failure(result: Result, who: str) -> str:
    """Why a peer has no figures, in place of its first cells."""
    return f"failed: {result.errors.get(who, 'no answer')} | | "


def same_cutter(result: Result) -> list[str]:
    """Loaders alone: all cut alike."""
    lines = [
        "## The loaders alone",
        "",
        "All read the same 384-px JPEGs and boxes; the others decode with simplejpeg into a reused "
        "buffer and cut with OpenCV straight into the batch, in our place. Time is relative to "
        "the bare tar reader (15 lines, no check) and to ours, which is the whole loader: "
        "shuffled epoch, checks of every sample, labels, keys.",
        "",
        row("", [f"{s}: ms | to the bare reader's | to ours" for s in result.sides]),
        "| --- | " + " | ".join(["---: | ---: | ---:"] * len(result.sides)) + " |",
    ]
    for who in ("bare", *PEERS, "ours"):
        cells = []
        for side in result.sides:
            key = who, "packed", "opencv", side
            if not len(result.milliseconds(key)):
                cells.append(failure(result, who))
                continue
            others = [(other, "packed", "opencv", side) for other in ("bare", "ours")]
            cells.append(f"{np.median(result.milliseconds(key)):.2f}")
            cells += [spread(result.ratio(key, o), 2) if o != key else "1" for o in others]
        lines.append(row(NAMES[who], cells))
    return [*lines, ""]


def reading(result: Result) -> list[str]:
    """Reading alone."""
    stores = ("originals", "packed")
    lines = [
        "## Reading alone",
        "",
        "Bytes of the JPEGs, nothing decoded; CPU ms an image, files in the page cache.",
        "",
        "| | original JPEGs | 384-px shards |",
        "| --- | ---: | ---: |",
    ]
    for who in ("bare", *PEERS, "ours"):
        times = [result.milliseconds((who, stored, "read", 0)) for stored in stores]
        cells = [spread(t, 3) if len(t) else failure(result, who)[:-4] for t in times]
        lines.append(row(NAMES[who], cells))
    return [*lines, ""]


def our_shares(result: Result) -> list[str]:
    """Where our time goes."""
    names = list(dict.fromkeys(name for shares in result.shares.values() for name in shares))
    names = [*(name for name in names if name != "rest"), "rest"]
    lines = [
        "## Where our CPU time goes",
        "",
        "By cProfile, percent of the whole; `rest` holds the batch's arrays and the profiler.",
        "",
        row("", names),
        "| --- | " + " | ".join(["---:"] * len(names)) + " |",
    ]
    for (stored, cut), shares in result.shares.items():
        what = f"patches of {cut.side}" if cut.mode == "patches" else f"one picture of {cut.side}"
        cells = [f"{100 * shares[name]:.0f}" if name in shares else "" for name in names]
        lines.append(row(f"{what}, {LABELS[stored]}", cells))
    return [*lines, ""]


def memory(result: Result) -> list[str]:
    """Memory over epochs."""
    values = ", ".join(f"{value:.0f}" for value in result.memory)
    return [
        "## Memory",
        "",
        f"Resident MB of the process after each of {len(result.memory)} epochs of one picture "
        f"an image: {values}.",
        "",
    ]


def targets(result: Result) -> list[str]:
    """Each target with what was measured."""
    lines = ["## Targets", "", "| target | measured | met |", "| --- | --- | --- |"]

    def add(target: str, measured: str, met: bool | None) -> None:
        verdict = "not measured" if met is None else "yes" if met else "**no**"
        lines.append(row(target, [measured, verdict]))

    for stored, label in LABELS.items():
        for side in result.sides:
            base = "folder", "originals", "pil", side
            least = LEAST[side] if stored == "packed" else LEAST_ORIGINALS
            for what, key in (
                ("one picture, ready to cut", our_picture(result, stored)),
                ("patches, cut here", ("ours", stored, "opencv", side)),
            ):
                ratio = result.ratio(base, key)
                met = float(np.median(ratio)) >= least
                why = "" if met else reason(result, key, base)
                name = f"{label}, {what}: at least {least:g} x the baseline at {side}"
                add(name, spread(ratio) + why, met)
    for who in ("webdataset", "ours"):
        found, met = [], True
        for side in result.sides:
            bare, key = ("bare", "packed", "opencv", side), (who, "packed", "opencv", side)
            over = 100 * (result.ratio(key, bare) - 1)
            found.append(f"{side}: {spread(over, 0)}%")
            met = met and float(np.median(over)) <= MOST_OVERHEAD
        name = f"tar to patches, {NAMES[who]}: at most {MOST_OVERHEAD}% over the bare tar reader"
        add(name, "; ".join(found), met)
    for who in RIVALS:
        for way, stored, label in (
            ("pil", "originals", "with PIL"),
            ("opencv", "packed", "with the bare reader's cutter"),
        ):
            ratios = {
                side: result.ratio((who, stored, way, side), ("ours", stored, "opencv", side))
                for side in result.sides
            }
            name = f"ahead of {NAMES[who]} {label}, {LABELS[stored]}: its time to ours above 1"
            if not all(map(len, ratios.values())):
                add(name, failure(result, who).split(" | ")[0], None)
                continue
            measured = "; ".join(f"{side}: {spread(ratio, 2)}" for side, ratio in ratios.items())
            add(name, measured, all(float(np.median(ratio)) > 1 for ratio in ratios.values()))
    one = result.kilobytes_handed(our_picture(result, "packed"))
    nine = result.kilobytes_handed(("folder", "originals", "pil", max(result.sides)))
    add("one picture, not N patches, to the trainer", f"{one:.0f} of {nine:,.0f} kB", one < nine)
    return lines


def reason(result: Result, key: Key, base: Key) -> str:
    """Why a speed-up is missed: what is possible without a loader, and where our time goes."""
    _, stored, way, side = key
    floor = ("decode", stored, "decode", 0) if way == "image" else ("memory", stored, way, side)
    ceiling = np.median(result.ratio(base, floor))
    cut = Cut("images" if way == "image" else "patches", side)
    parts = ", ".join(f"{k} {100 * share:.0f}%" for k, share in result.shares[stored, cut].items())
    return f"; without reading anything {ceiling:.1f}; our time: {parts}"
