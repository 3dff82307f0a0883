"""The stage that finds the starts of the clustering layer before any trial asks for one."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from distributed.display import Display
from distributed.features.actors import task_results
from tune.config import SearchConfig
from tune.space import with_params
from tune.trial.context import Material, has_start, start_key, starts_root, sweep, trial_job
from vgse.config import RunConfig

_START_FIELDS = ("model.num_clusters", "model.projection", "model.max_points_per_centroid", "seed")
_SAMPLE_FIELDS = ("model.num_clusters", "model.max_points_per_centroid")
_MANY_STARTS = 32


def widest(config: SearchConfig, base: RunConfig) -> RunConfig:
    """The base with the largest start that a trial can ask for: a backbone that learns has only a
    sample of its features cached."""
    largest = {}
    for name in _SAMPLE_FIELDS:
        if name in config.space:
            dimension = config.space[name]
            values = [v for v in (dimension.high, *(dimension.choices or [])) if v is not None]
            largest[name] = max(int(value) for value in values)
    return with_params(base, largest)


def _start_choices(material: Material) -> Iterator[dict[str, Any]]:
    """Parameters of every start that can be known beforehand."""
    space = material.config.space
    names = [name for name in _START_FIELDS if name in space]
    choices = [space[name].choices for name in names]
    if all(options is not None for options in choices):
        for values in product(*(options or [] for options in choices)):
            yield dict(zip(names, values, strict=True))


def run_starts(material: Material, shared: Any, display: Display) -> None:
    """One k-means for each D_v that can be drawn; of a range each trial sees to its own."""
    sweep(starts_root(material.features, material.base))
    choices = list(_start_choices(material))
    if not 0 < len(choices) <= _MANY_STARTS or all(_has_start(material, c) for c in choices):
        return
    with display.stage("clusters", len(choices)) as stage:
        for _ in task_results(_start_task, ((shared, params) for params in choices)):
            stage.advance(1)
        sizes = [str(params.get("model.num_clusters", "")) for params in choices]
        stage.summary = f"{len(choices)} k-means" + (f" of {', '.join(sizes)}" if sizes[0] else "")


def _has_start(material: Material, params: dict[str, Any]) -> bool:
    key = start_key(with_params(material.base, params), material.trained.tolist())
    return has_start(Path(material.starts) / key)


def _start_task(material: Material, params: dict[str, Any]) -> str:
    return trial_job(material, params).run
