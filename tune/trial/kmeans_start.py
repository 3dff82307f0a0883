"""Where the clusters of a trial start: k-means, computed once for all trials that share it."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import ray

from distributed.display import Display
from distributed.features.actors import results_of
from distributed.features.kmeans_init import make_start
from tune.space import with_params
from tune.trial.context import TrialContext
from vgse.config import RunConfig
from vgse.errors import UserError

_FIELDS = ("model.num_clusters", "model.projection", "model.max_points_per_centroid", "seed")
_MANY_STARTS = 32
_STALE_S = 24 * 3600.0
_PART = ".part-"


def start_key(config: RunConfig, classes: Sequence[int]) -> str:
    """A name for all that a start depends on, besides the features it is computed from."""
    model = config.model
    content = [
        model.num_clusters,
        model.projection,
        model.max_points_per_centroid,
        config.seed,
        sorted(classes),
    ]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return f"{model.num_clusters}-{digest}"


def _start_folder(context: TrialContext, config: RunConfig) -> Path:
    return Path(context.starts) / start_key(config, context.trained.tolist())


def _is_whole(folder: Path) -> bool:
    return (folder / "init" / "centroids.npy").is_file()  # the last file to be written


def ensure_start(context: TrialContext, config: RunConfig) -> Path:
    """The folder that holds `init/` for a trial's configuration, computed if it is not there.

    UserError where there are fewer distinct patches than clusters.
    """
    target = _start_folder(context, config)
    if _is_whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix=_PART, dir=target.parent))
    try:
        own.chmod(0o755)  # other users of a shared disk may read it
        make_start(
            context.features,
            context.units,
            context.trained.tolist(),
            config,
            num_patches=context.num_patches,
            below=context.spec.sample_below,
            init=own / "init",
        )
        with suppress(OSError):  # another was faster: a folder that holds files stays
            os.rename(own, target)
    finally:
        shutil.rmtree(own, ignore_errors=True)
    if not _is_whole(target):
        raise UserError(f"{target}: cannot be written; see that the folder is writable")
    return target


def remove_partial_starts(root: Path, *, older_than: float = _STALE_S) -> None:
    """Delete what killed writers left."""
    for folder in root.glob(f"{_PART}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > older_than:
                shutil.rmtree(folder, ignore_errors=True)


def _choices(context: TrialContext) -> Iterator[dict[str, Any]]:
    """Parameters of every start that can be known beforehand."""
    space = {name: context.config.space[name] for name in _FIELDS if name in context.config.space}
    if all(dimension.choices is not None for dimension in space.values()):
        for values in product(*(dimension.choices or [] for dimension in space.values())):
            yield dict(zip(space, values, strict=True))


def run_starts(context: TrialContext, shared: Any, display: Display) -> None:
    """The stage of one k-means for each D_v that can be drawn; of a range each trial sees to its
    own. `shared` is the context's reference in Ray's object store."""
    remove_partial_starts(Path(context.starts))
    choices = list(_choices(context))
    configs = [with_params(context.base, params) for params in choices]
    missing = [config for config in configs if not _is_whole(_start_folder(context, config))]
    if not missing or len(choices) > _MANY_STARTS:
        return
    with display.stage("clusters", len(choices)) as stage:
        task = ray.remote(num_cpus=1, max_retries=3)(_start_task)
        for _ in results_of(((task, (shared, config)) for config in configs), limit=8):
            stage.advance(1)
        sizes = [str(params.get("model.num_clusters", "")) for params in choices]
        stage.summary = f"{len(choices)} k-means" + (f" of {', '.join(sizes)}" if sizes[0] else "")


def _start_task(context: TrialContext, config: RunConfig) -> str:
    return str(ensure_start(context, config))
