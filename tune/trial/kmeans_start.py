"""Where the clusters of a trial start: k-means, computed once for all trials that share it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from distributed.features.kmeans_init import make_start
from tune.trial.context import TrialContext
from vgse.config import RunConfig
from vgse.files import disk_errors_in_one_line


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


def ensure_start(context: TrialContext, config: RunConfig) -> Path:
    """The folder that holds `init/` for a trial's configuration, computed if it is not there.

    Trials that need the same one wait for the first. Its files are written whole, centroids last,
    so that a killed trial leaves nothing that another could take for a start. UserError where there
    are fewer distinct patches than clusters.
    """
    classes = context.trained.tolist()
    folder = Path(context.starts) / start_key(config, classes)
    centroids = folder / "init" / "centroids.npy"
    if centroids.is_file():
        return folder
    with disk_errors_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not centroids.is_file():
                make_start(
                    context.features,
                    context.units,
                    classes,
                    config,
                    num_patches=context.num_patches,
                    below=context.spec.sample_below,
                    init=folder / "init",
                )
    return folder
