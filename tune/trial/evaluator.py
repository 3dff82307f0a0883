"""What is measured of a trial after each epoch: its objective, and whether it has collapsed."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distributed.embedding.embed import Encoder, embed_units
from distributed.train.checkpoint import load_module
from distributed.train.trainer import TrainingJob, build_model
from tune.trial.context import TrialContext
from tune.trial.objective import MEASURES, own_images_accuracy, zero_shot_scores
from vgse.config import loss_symbols
from vgse.embeddings import class_embeddings
from vgse.errors import UserError

_TRAINED = ("loss", *loss_symbols(), "used_clusters", "usage_entropy", "nmi", "learning_rate")
ROW = (*_TRAINED, *MEASURES, "seconds")  # besides the epoch and the objective

_STUCK_EPOCHS = 3


class Evaluator:
    """Scores the checkpoints of one trial."""

    def __init__(
        self, context: TrialContext, job: TrainingJob, history: list[dict[str, Any]]
    ) -> None:
        self._history = history  # rows of the epochs so far; the next is appended
        self._model = build_model(job).eval().to(context.device)
        self._context, self._config = context, job.config
        head, backbone = self._model.head, self._model.backbone
        self._encoder = Encoder(job, head, backbone=backbone, device=context.device)
        self._began = time.monotonic()

    def row(self, trained: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
        """An epoch's row from what training reports and the checkpoint it made; shares in 0..1."""
        load_module(checkpoint, "head", self._model.head)
        if self._model.backbone is not None:
            load_module(checkpoint, "backbone", self._model.backbone)
        with torch.inference_mode():
            embedded = embed_units(self._encoder, self._context.units)
        search, own = self._context.config, class_embeddings(embedded.sums["train"])
        if not np.isfinite(own[self._context.trained]).all():
            raise UserError(
                "the loss is not finite: class embeddings hold NaN; lower training.learning_rate"
            )
        scores = zero_shot_scores(
            self._context.problem,
            own,
            self._context.word_vectors,
            self._context.knowledge,
            self._config.relations,
            self._config.evaluation.normalise,
            search.models,
        )
        scores |= {
            "own_images": own_images_accuracy(self._context.problem, embedded.images.assignments)
        }
        row = {"epoch": trained["epoch"], "objective": objective_of(scores, search.objective)}
        row |= {name: trained[name] for name in _TRAINED if name in trained} | scores
        cause = collapse_cause(
            [*self._history, row],
            self._config.model.num_clusters,
            len(self._context.trained),
            search.collapse_share,
        )
        row |= {} if cause is None else {"collapsed": cause}
        row["seconds"] = round(time.monotonic() - self._began, 3)
        self._began = time.monotonic()
        self._history.append(row)
        return row


def objective_of(scores: Mapping[str, float], objective: str) -> float:
    """What a trial is judged by, in 0..1: one of the MEASURES, or the mean of two."""
    return float(np.mean([scores[name] for name in objective.split("+")]))


def collapse_cause(
    rows: list[dict[str, Any]], num_clusters: int, num_classes: int, share: float
) -> str | None:
    """Why a trial is not worth going on with, in one line; None where it is.

    Dead clusters: less than `share` of them hold patches, or two at most. Stuck: the class loss
    stayed at ln S, that of guessing, for three epochs. The first epoch warms up: it is not judged.
    """
    if len(rows) < 2:
        return None
    last = rows[-1]
    used = last.get("used_clusters")
    if used is not None and used < max(2, share * num_clusters):
        return f"dead clusters: {used} of {num_clusters} hold patches in epoch {last['epoch']}"
    losses = [row.get("classification") for row in rows[-_STUCK_EPOCHS:]]
    guessing = math.log(num_classes)
    if len(rows) > _STUCK_EPOCHS and all(x is not None and x > 0.995 * guessing for x in losses):
        return (
            f"stuck at ln S: the class loss is {losses[-1]:.3f} in epoch {last['epoch']}, that of "
            f"guessing among {num_classes} classes is {guessing:.3f}"
        )
    return None
