"""The stage that embeds every image once."""

import functools
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from distributed.display import Display
from distributed.embedding.embed import Embedded, Encoder, embed_units, merge
from distributed.features.actors import remote_function, results_of
from distributed.features.cache import Unit, access_of
from distributed.train.checkpoint import load_module
from distributed.train.spec import TrainingJob, build_model

_UNITS_A_TASK = 4
_ONE_AT_A_TIME = threading.Lock()


def run_embedding(
    job: TrainingJob,
    checkpoint: str | Path,
    gpu: bool,
    display: Display,
    manifest_units: list[Unit],
) -> Embedded:
    """Embed every image once; returns the reduced sums and one row an image.

    `checkpoint` is the folder or the URL of the last one.
    """
    model = build_model(job)
    start = build_model(job).head if model.backbone is None else None
    gpu = gpu and model.backbone is not None  # a head alone on cached features needs none
    load_module(checkpoint, "head", model.head)
    if model.backbone is not None:
        load_module(checkpoint, "backbone", model.backbone)
    encoder = Encoder(
        url=job.url,
        folder=job.folder,
        spec=job.spec,
        num_classes=job.num_classes,
        head=model.head.eval(),
        start=None if start is None else start.eval(),
        backbone=None if model.backbone is None else model.backbone.eval(),
        device="cuda" if gpu else "cpu",
        access=access_of(job.config.data),
    )
    groups = [
        manifest_units[i : i + _UNITS_A_TASK] for i in range(0, len(manifest_units), _UNITS_A_TASK)
    ]
    parts: dict[int, Embedded] = {}
    with (
        display.stage("embedding", sum(u.stop - u.start for u in manifest_units)) as stage,
        remote_function(_embed_numbered, job.config.cluster, gpu, len(groups)) as task,
    ):
        shared = [ray.put(encoder)]  # in a list: a reference, which processes look up once
        calls = ((task, (shared, group, number)) for number, group in enumerate(groups))
        for number, part in results_of(calls, limit=32):
            parts[number] = part
            stage.advance(len(part.images.keys))
        result = merge([parts[number] for number in range(len(groups))])
        nameless = result.images.sources.count("")
        stage.summary = f"{len(result.images.keys):,} images, each once"
        if nameless:
            stage.summary += f"; the feature cache knows {nameless:,} of them by their keys alone"
    return result


def _embed_numbered(encoder: list[Any], units: Sequence[Unit], number: int) -> tuple[int, Embedded]:
    with _ONE_AT_A_TIME:
        here = _encoder(encoder[0])
    return number, embed_units(here, units)


@functools.lru_cache(maxsize=1)
def _encoder(reference: Any) -> Encoder:
    """The encoder on its device, which the driver's machine need not have."""
    encoder: Encoder = ray.get(reference)
    return replace(
        encoder,
        head=encoder.head.to(encoder.device),
        start=None if encoder.start is None else encoder.start.to(encoder.device),
        backbone=None if encoder.backbone is None else encoder.backbone.to(encoder.device),
    )
