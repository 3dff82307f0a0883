"""The finalists: retrained on all seen classes, and scored on test images, once each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distributed.display import Display
from distributed.logs import shown_in_file
from distributed.run import is_finished, train
from tune.config import SearchConfig
from tune.space import with_params
from tune.study import DEFAULT, TrialRecord, ranked, tested_by
from tune.trial.objective import ZERO_SHOT
from vgse.errors import UserError
from vgse.files import write_json
from vgse.report.page import percent


def score_finalists(
    config: SearchConfig, folder: Path, records: Sequence[TrialRecord], display: Display
) -> None:
    """Train and test the finalists and the default, and write final.json.

    A finalist whose run is finished is not trained again. Without finalists test images stay
    closed, and rows hold validation scores alone.
    """
    default = [record for record in records if record.name == DEFAULT]
    chosen = [record for record in ranked(records) if record.name != DEFAULT][: config.finalists]
    rows: list[dict[str, Any]] = []
    opened: list[dict[str, Any]] = []
    for record in [*default, *chosen]:
        name = "default" if record.name == DEFAULT else record.name
        row: dict[str, Any] = {
            "name": name,
            "params": record.params,
            "validation": record.objective,
            "test": None,
            "model": "+".join(config.models),
            "run": None,
            "validation_only": True,
        }
        if config.finalists:
            with display.stage("test") as stage:
                row |= _test_scores(config, folder, name, record)
                opened += [{"row": name, **entry} for entry in row.pop("test_opened", [])]
                stage.summary = f"{name}: {row.get('cause', 'not trained')}"
                if row["test"]:
                    stage.summary = (
                        f"{name}: validation {percent(row['validation'])} %, "
                        f"test {percent(row['test'][tested_by(config.objective)])} %"
                    )
        rows.append(row)
    final = {"version": 1, "objective": config.objective, "rows": rows, "test_opened": opened}
    write_json(folder / "final.json", final)


def _test_scores(
    config: SearchConfig, folder: Path, name: str, record: TrialRecord
) -> dict[str, Any]:
    """The part of a row that comes from test images."""
    fixed = {"training.classes": "seen", "evaluation.models": list(config.models)}
    run = with_params(config.run, {**record.params, **fixed, "storage": str(folder / "final")})
    done = folder / "final" / name
    try:
        if not is_finished(done):
            done.parent.mkdir(exist_ok=True)
            with shown_in_file(done.with_name(f"{name}.log")):
                train(run, name)
        evaluation = json.loads((done / "evaluation.json").read_text(encoding="utf-8"))
    except UserError as error:
        return {"cause": str(error)}
    results = next(row for row in evaluation["rows"] if row["name"] == "smo")["results"]
    return {
        "test": {
            measure: float(np.mean([results[model][measure] for model in config.models]))
            for measure in ZERO_SHOT
        }
        | {"own_images": evaluation["clusters"]["nearest_class_mean_unseen"]},
        "run": f"final/{name}",
        "validation_only": False,
        "test_opened": evaluation.get("test_opened", []),
    }
