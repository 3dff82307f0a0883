"""The finalists: retrained on all seen classes, and scored on test images, once each."""

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from distributed.display import Display
from distributed.run import train
from tune.config import SearchConfig
from tune.report.analyse import NUM_SHOWN, trial_table
from tune.report.search_files import load_search
from tune.report.verdict import headline, judge_ranks, spearman
from tune.searcher import DEFAULT
from tune.space import with_params
from tune.study import TrialRecord, ranked
from tune.trial.objective import MEASURES
from vgse.errors import UserError
from vgse.files import write_json
from vgse.report.page import percent


def score_finalists(
    config: SearchConfig, folder: Path, records: Sequence[TrialRecord]
) -> dict[str, Any]:
    """Train and test the finalists, write final.json, print what came out; returns final.json.

    A finalist whose run is finished is not trained again. Without finalists test images stay
    closed, and rows hold validation scores alone.
    """
    best = ranked(records)
    default = [record for record in records if record.name == DEFAULT]
    chosen = [record for record in best if record.name != DEFAULT][: config.finalists]
    rows: list[dict[str, Any]] = []
    opened = []
    with Display() as display:
        for record in [*default, *chosen]:
            row: dict[str, Any] = {
                "name": "default" if record.name == DEFAULT else record.name,
                "params": record.params,
                "validation": record.objective,
                "test": None,
                "model": "+".join(config.models),
                "run": None,
                "validation_only": True,
            }
            if config.finalists:
                with display.stage("test") as stage:
                    row |= _test_scores(config, folder, row["name"], record)
                    opened += [
                        {"row": row["name"], **entry} for entry in row.pop("test_opened", [])
                    ]
                    stage.summary = f"{row['name']}: {row.get('cause', 'not trained')}"
                    if row["test"]:
                        stage.summary = (
                            f"{row['name']}: validation {percent(row['validation'])} %, "
                            f"test {percent(row['test'][config.objective])} %"
                        )
            rows.append(row)
    final = {
        "version": 1,
        "objective": config.objective,
        "rows": rows,
        "rank_correlation": rank_correlation(rows, config.objective),
        "test_opened": opened,
    }
    write_json(folder / "final.json", final)
    _print(config, folder, best, rows)
    return final


def _test_scores(
    config: SearchConfig, folder: Path, name: str, record: TrialRecord
) -> dict[str, Any]:
    """The part of a row that comes from test images."""
    run = with_params(config.run, record.params)
    run = replace(
        run,
        training=replace(run.training, classes="seen"),
        evaluation=replace(run.evaluation, models=list(config.models)),
        storage=str(folder / "final"),
    )
    done = folder / "final" / name
    try:
        if not (done / "report.html").is_file():
            done.parent.mkdir(exist_ok=True)
            with (
                done.with_name(f"{name}.log").open("a", encoding="utf-8") as stream,
                contextlib.redirect_stdout(stream),
            ):
                train(run, name)
        evaluation = json.loads((done / "evaluation.json").read_text(encoding="utf-8"))
    except UserError as error:
        return {"cause": str(error)}
    results = next(row for row in evaluation["rows"] if row["name"] == "smo")["results"]
    return {
        "test": {
            measure: float(np.mean([results[model][measure] for model in config.models]))
            for measure in MEASURES
        },
        "run": f"final/{name}",
        "validation_only": False,
        "test_opened": evaluation.get("test_opened", []),
    }


def rank_correlation(rows: Sequence[dict[str, Any]], objective: str) -> float | None:
    """Spearman's of validation and test; None below three rows and where one does not vary."""
    tested = [row for row in rows if row["test"] and row["validation"] is not None]
    if len(tested) < 3:
        return None
    test = [row["test"][objective] for row in tested]
    rho, _ = spearman([row["validation"] for row in tested], test)
    return None if math.isnan(rho) else rho


def _print(
    config: SearchConfig, folder: Path, best: Sequence[TrialRecord], rows: list[dict[str, Any]]
) -> None:
    console = Console(highlight=False)
    console.print(f"best trials by {config.objective} on validation classes", style="italic")
    console.print(trial_table(best[:NUM_SHOWN], sorted(config.space), console.width))
    if config.finalists:
        console.print(_finalists_table(rows))
    found = load_search(folder)
    for sentence in [*headline(found), *([judge_ranks(found)] if config.finalists else [])]:
        console.print(sentence, soft_wrap=True)


def _finalists_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="retrained on all seen classes", title_justify="left", pad_edge=False)
    table.add_column("trial")
    for name in ("validation %", *(f"test {measure} %" for measure in MEASURES)):
        table.add_column(name.replace("harmonic_mean", "H"), justify="right")
    for row in rows:
        test = row["test"] or {}
        cells = [percent(test.get(measure)) for measure in MEASURES]
        table.add_row(row["name"], percent(row["validation"]), *cells)
    return table
