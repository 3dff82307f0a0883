"""The table of a repeat: mean and spread of every row over runs, and differences paired by run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from vgse.errors import UserError
from vgse.files import read_mapping, write_json, written_whole
from vgse.report.page import MINUS, NONE, page, render
from vgse.zsl.show import rows_table

MEASURES = {"zsl": "T1", "harmonic_mean": "H"}
REFERENCES = {"words": "word vectors", "paper_smo": "VGSE-SMO, paper"}
SECTIONS = {"rows": "Every row, mean of the models", "models": "By model", "runs": "The runs"}

Values = NDArray[np.float64]  # one a run, in 0..1


@dataclass(frozen=True)
class Row:
    """A row of the zero-shot table over all runs."""

    name: str
    label: str
    group: str
    values: dict[tuple[str, str], Values]  # (measure, model), the mean of the models under ""


@dataclass(frozen=True)
class Spread:
    """What several runs of one configuration came to."""

    name: str
    kind: str  # "split" or "seed"
    runs: list[str]
    models: list[str]
    chance: Values
    rows: list[Row]
    choices: list[str]  # of knowledge and ridge, in words, of each run
    clusters: dict[str, Values]  # measures of the clusters, as in evaluation.json

    def find(self, name: str) -> Row | None:
        """The row of that name, if there is one."""
        return next((row for row in self.rows if row.name == name), None)

    def minus(self, row: Row, reference: str, measure: str) -> tuple[float, float] | None:
        """Mean and standard error of a row's difference to another, paired by run; None where
        there is no other."""
        other = self.find(reference)
        if other is None or other is row:
            return None
        gap = row.values[measure, ""] - other.values[measure, ""]
        return float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(len(gap)))


def read_spread(folder: Path, runs: Sequence[str], kind: str) -> Spread:
    """The results of runs in a folder, of those rows that all have."""
    evaluations = [read_mapping(folder / run / "evaluation.json") for run in runs]
    tables = [{row["name"]: row for row in content["rows"]} for content in evaluations]
    models: list[str] = evaluations[0]["models"]
    if any(content["models"] != models for content in evaluations):
        raise UserError(f"{folder}: its runs were evaluated by other models; evaluate them alike")
    rows = []
    for name, first in tables[0].items():
        if not all(name in table for table in tables):
            continue
        values: dict[tuple[str, str], Values] = {}
        for measure in MEASURES:
            of_models = np.array(
                [[table[name]["results"][m][measure] for m in models] for table in tables]
            )
            values |= {(measure, m): of_models[:, i] for i, m in enumerate(models)}
            values[measure, ""] = of_models.mean(1)
        rows.append(Row(name, first["label"], first["group"], values))
    chance = np.array([content["chance"] for content in evaluations])
    choices = [str(read_mapping(folder / run / "relations.json").get("line") or "") for run in runs]
    measures = [content.get("clusters") or {} for content in evaluations]
    clusters = {
        name: np.array([of_run[name] for of_run in measures], np.float64)
        for name in measures[0]
        if all(name in of_run for of_run in measures)
    }
    return Spread(folder.name, kind, list(runs), models, chance, rows, choices, clusters)


def spread_table(spread: Spread, measure: str) -> Table:
    """One of MEASURES for a terminal, in percent."""
    table = rows_table(
        f"percent, mean of {', '.join(spread.models)}; mean ± standard deviation over "
        f"{len(spread.runs)} {spread.kind}s, differences with their standard error "
        f"(chance {100 * spread.chance.mean():.1f})",
        31,
    )
    for title in (MEASURES[measure], "minus words", "minus paper"):
        table.add_column(title, justify="right", no_wrap=True, min_width=13)
    for index, row in enumerate(spread.rows):
        last = index + 1 == len(spread.rows) or spread.rows[index + 1].group != row.group
        cells = [with_deviation(row.values[measure, ""])]
        cells += [with_error(spread.minus(row, reference, measure)) for reference in REFERENCES]
        table.add_row(row.label, *cells, end_section=last)
    return table


def with_deviation(values: Values) -> str:
    """Mean ± standard deviation of a sample, in percent."""
    return f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}"


def with_error(difference: tuple[float, float] | None) -> str:
    """A difference ± its standard error, in points."""
    if difference is None:
        return NONE
    mean, error = difference
    return f"{100 * mean:+.1f} ± {100 * error:.1f}".replace("-", MINUS)


def to_dict(spread: Spread) -> dict[str, Any]:
    """The contents of repeat.json; shares in 0..1."""

    def summary(values: Values) -> dict[str, Any]:
        mean, std = float(values.mean()), float(values.std(ddof=1))
        return {"mean": mean, "std": std, "values": values.tolist()}

    def difference(row: Row, reference: str, measure: str) -> dict[str, float] | None:
        found = spread.minus(row, reference, measure)
        return None if found is None else {"mean": found[0], "standard_error": found[1]}

    return {
        "version": 1,
        "kind": spread.kind,
        "runs": spread.runs,
        "models": spread.models,
        "chance": float(spread.chance.mean()),
        "choices": spread.choices,
        "clusters": {name: summary(values) for name, values in spread.clusters.items()},
        "rows": [
            {
                "name": row.name,
                "label": row.label,
                "group": row.group,
                **{measure: summary(row.values[measure, ""]) for measure in MEASURES},
                **{
                    f"minus_{reference}": {m: difference(row, reference, m) for m in MEASURES}
                    for reference in REFERENCES
                },
                "models": {
                    model: {m: summary(row.values[m, model]) for m in MEASURES}
                    for model in spread.models
                },
            }
            for row in spread.rows
        ],
    }


def headline(spread: Spread) -> list[str]:
    """What the method gains, in a sentence a reference."""
    smo, lines = spread.find("smo"), []
    for reference, label in REFERENCES.items():
        for measure, symbol in MEASURES.items():
            gap = None if smo is None else spread.minus(smo, reference, measure)
            if gap is not None and smo is not None:
                clear = "" if abs(gap[0]) > 2 * gap[1] else ": no clear difference"
                lines.append(f"VGSE-SMO minus {label}, {symbol}: {with_error(gap)} points{clear}.")
    return lines


def write_spread(folder: Path, spread: Spread, causes: Mapping[str, str]) -> Path:
    """Write repeat.json and repeat.html; returns the page."""
    write_json(folder / "repeat.json", to_dict(spread) | {"failed": dict(causes)})
    configured = (folder / "repeat.yaml").read_text("utf-8") if folder.is_dir() else ""
    content = {
        "spread": spread,
        "causes": causes,
        "headline": headline(spread),
        "measures": MEASURES,
        "references": REFERENCES,
        "with_deviation": with_deviation,
        "with_error": with_error,
        "configuration": configured,
        "facts": [
            (f"{spread.kind.capitalize()}s", str(len(spread.runs)), "mean ± standard deviation"),
            ("Models", str(len(spread.models)), ", ".join(spread.models)),
            ("Chance", f"{100 * spread.chance.mean():.1f} %", "among unseen classes"),
        ],
    }
    parts = {
        name: render(f"spread_{name}", content, package="tune.report")
        for name in ("head", *SECTIONS)
    }
    sections = [(name, title, parts[name]) for name, title in SECTIONS.items()]
    path = folder / "repeat.html"
    with written_whole(path) as stream:
        text = page(f"VGSE repeat: {spread.name}", "", parts["head"], sections, "")
        stream.write(text.encode())
    return path
