"""Zero-shot accuracy: what each kind of class embedding reaches, and what it is compared with."""

from itertools import groupby
from operator import itemgetter
from typing import Any

from vgse.report.run_files import RunFiles, need
from vgse.zsl.models import label_of


def zsl_section(run: RunFiles) -> dict[str, Any]:
    """The rows by group with a bar for each T1, and what VGSE-SMO gained over three of them."""
    content = run.evaluation
    need(content, "evaluation.json", "rows", "models")
    models = [str(model) for model in content["models"]]
    rows = [_row(row, models) for row in content["rows"]]
    every = [t1 or 0.0 for row in rows for t1 in row["t1"]]
    fair = [t1 or 0.0 for row in rows if row["group"] != "oracle" for t1 in row["t1"]]
    top = min(max(0.01, *every), 1.6 * max(0.01, *fair))  # a far ceiling must not squeeze the rest
    for row in rows:
        row["bars"] = [(t1, round(max(0.0, 100 * (t1 or 0) / top), 1)) for t1 in row["t1"]]
    chance = content.get("chance")
    return {
        "models": [label_of(model) for model in models],
        "groups": [(group, list(members)) for group, members in groupby(rows, itemgetter("group"))],
        "chance": chance,
        "tick": None if chance is None else round(min(100.0, 100 * float(chance) / top), 1),
        "gains": _gains(rows, models),
        "curves": _curves(rows, models),
    }


_SIZE, _LEFT, _RIGHT = 240, 34, 230


def _curves(rows: list[dict[str, Any]], models: list[str]) -> list[dict[str, Any]]:
    """For each model the accuracy on seen classes over that on unseen ones, of a few rows."""
    shown = [row for row in rows if row["name"] in ("words", "paper_smo", "smo", "given")]

    def place(unseen: float, seen: float) -> tuple[float, float]:
        across, up = (_LEFT + share * (_RIGHT - _LEFT) for share in (unseen, seen))
        return round(across, 1), round(_SIZE - up, 1)

    found = []
    for index, model in enumerate(models):
        lines = []
        for row in shown:
            result = row["results"][index]
            if result.get("curve") and result.get("unseen") is not None:
                places = [place(*point) for point in result["curve"]]
                at = place(result["unseen"], result["seen"])
                lines.append(
                    {"name": row["name"], "label": row["label"], "places": places, "at": at}
                )
        if lines:
            ticks = [(_LEFT + n * (_RIGHT - _LEFT) / 4, f"{25 * n}") for n in range(5)]
            frame = {"size": _SIZE, "left": _LEFT, "right": _RIGHT, "ticks": ticks}
            legend = [(line["name"], line["label"]) for line in lines]
            found.append({"model": label_of(model), "lines": lines, "legend": legend} | frame)
    return found


def _row(row: dict[str, Any], models: list[str]) -> dict[str, Any]:
    name = str(row.get("name", ""))
    found = [row.get("results", {}).get(model) for model in models]
    results = [result if isinstance(result, dict) else {} for result in found]
    return {
        "name": name,
        "label": row.get("label", name),
        "group": str(row.get("group", "")),
        "dimension": row.get("dimension"),
        "results": results,
        "t1": [None if (t1 := result.get("zsl")) is None else float(t1) for result in results],
    }


def _gains(rows: list[dict[str, Any]], models: list[str]) -> dict[str, list[tuple[str, float]]]:
    """By the name of the other row (model, points gained) of each model that has both."""
    t1 = {row["name"]: row["t1"] for row in rows}
    gains = {}
    for other in ("words", "paper_smo", "onehot_smo"):
        pairs = zip(models, t1.get("smo", ()), t1.get(other, ()), strict=False)
        chips = [
            (label_of(model), 100 * (ours - theirs))
            for model, ours, theirs in pairs
            if ours is not None and theirs is not None
        ]
        if chips:
            gains[other] = chips
    return gains
