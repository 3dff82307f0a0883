"""The stage that embeds every image once."""

from collections.abc import Sequence
from pathlib import Path

import ray

from distributed.checkpoint import load_module
from distributed.display import Display
from distributed.embed import Embedded, Encoder, embed_units, merge
from distributed.features import Unit, access_of
from distributed.job import TrainingJob, build_model
from distributed.remote_calls import results_of

_UNITS_A_TASK = 4


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
    device = "cuda" if gpu else "cpu"
    model = build_model(job)
    frozen = model.backbone is None
    start = build_model(job).head if frozen else None
    load_module(checkpoint, "head", model.head)
    if model.backbone is not None:
        load_module(checkpoint, "backbone", model.backbone)
    encoder = Encoder(
        url=job.url,
        folder=job.folder,
        spec=job.spec,
        num_classes=job.num_classes,
        head=model.head.eval().to(device),
        start=None if start is None else start.eval().to(device),
        backbone=None if model.backbone is None else model.backbone.eval().to(device),
        device=device,
        access=access_of(job.config.data),
    )
    task = ray.remote(num_cpus=1, num_gpus=1 if gpu else 0, max_retries=3)(_embed_numbered)
    groups = [
        manifest_units[i : i + _UNITS_A_TASK] for i in range(0, len(manifest_units), _UNITS_A_TASK)
    ]
    parts: dict[int, Embedded] = {}
    with display.stage("embedding", sum(u.stop - u.start for u in manifest_units)) as stage:
        shared = ray.put(encoder)
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


def _embed_numbered(encoder: Encoder, units: Sequence[Unit], number: int) -> tuple[int, Embedded]:
    return number, embed_units(encoder, units)
