"""One trial of one worker, in this process: no Ray in it."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distributed.alone import train_alone
from distributed.compute_features import patch_features
from distributed.features import access_of, read_unit, weights_of
from distributed.unit_files import write_tensors
from tune.judge import Judge, collapse_cause
from tune.keeping import keep, kept
from tune.material import Material, trial_job
from vgse.backbones import build_backbone

Report = Callable[[dict[str, Any]], None]
"""Takes an epoch's row; may raise to end the trial."""


class Collapsed(Exception):
    """Ends the training of a trial that is not worth going on with."""


def run_trial(material: Material, trial: str, params: Mapping[str, Any], report: Report) -> None:
    """Train a trial to its last epoch, or until it collapses, and report each epoch.

    A trial that was interrupted goes on from its last checkpoint; the rows up to there are
    reported again, so that whoever listens knows the whole trial.

    Raises:
        ValueError: the loss is not finite, or the data has too few distinct patches.
    """
    search = Path(material.folder)
    checkpoint, history = kept(search, trial)
    for row in history:
        report(row)
    if history and (history[-1]["epoch"] >= material.base.training.epochs or ended(history[-1])):
        return
    with patches_for(material) as (features, renew):
        job = trial_job(material, params, features=features)
        judge = Judge(material, job)
        began = time.monotonic()

        def on_epoch(trained: dict[str, Any], made: Path | None) -> None:
            nonlocal began
            assert made is not None, "a trial makes a checkpoint every epoch"
            row = judged(material, judge, job.config.model.num_clusters, trained, made, history)
            row["seconds"] = round(time.monotonic() - began, 3)
            history.append(row)
            keep(search, trial, made, history)
            report(row)
            if ended(row):
                raise Collapsed
            began = time.monotonic()
            if row["epoch"] < job.config.training.epochs:
                renew()

        try:
            train_alone(job, checkpoint=checkpoint, on_epoch=on_epoch, device=material.device)
        except Collapsed:
            return


def judged(
    material: Material,
    judge: Judge,
    num_clusters: int,
    trained: dict[str, Any],
    made: Path,
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    """The row of an epoch, with `collapsed` where the trial has."""
    row = judge.row(trained, made)
    cause = collapse_cause(
        [*history, row], num_clusters, len(material.trained), material.config.collapse_share
    )
    return row if cause is None else row | {"collapsed": cause}


def ended(row: Mapping[str, Any]) -> bool:
    """Whether a row is the last of a trial that did not do all its epochs."""
    return bool(row.get("collapsed") or row.get("failed"))


@contextmanager
def patches_for(material: Material) -> Iterator[tuple[str | None, Callable[[], None]]]:
    """The folder of patch features for a trial, and what to call before the next epoch.

    On the cache that is None and nothing. From pixels it is a folder of the trial's own, into
    which every patch is decoded, cut and sent through the backbone anew for each epoch.
    """
    if not material.config.from_pixels:
        yield None, _nothing
        return
    folder = Path(tempfile.mkdtemp(prefix="vgse-pixels-"))
    spec, access = material.spec, access_of(material.base.data)
    backbone = build_backbone(spec.name, weights_of(spec)).to(material.device)

    def renew() -> None:
        for unit in material.units:
            known = read_unit(material.features, unit, access)
            with torch.inference_mode():
                patches = patch_features(material.url, unit, spec, backbone, material.device)
            tensors = {
                "labels": known.labels,
                "rows": known.rows,
                "images": known.images,
                "patches": patches.half(),
            }
            write_tensors(folder / unit.file, tensors, {"keys": json.dumps(known.keys)})

    try:
        renew()
        yield str(folder), renew
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _nothing() -> None:
    """What a trial on the cache does before an epoch."""
