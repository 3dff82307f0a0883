"""Starts of the clustering layer, one for each D_v and data set, shared by all trials.

No locks: whoever finds none computes it into a folder of its own and renames that into place. A
second writer finds the place taken and drops its own, and a killed one leaves a folder that
nobody looks at.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from distributed.features import FeatureSpec, Unit
from distributed.start import make_start
from vgse.config import RunConfig

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


def has_start(folder: Path) -> bool:
    """Whether a folder holds a start; its last file says that it is whole."""
    return (folder / "init" / "centroids.npy").is_file()


def ensure_start(
    root: Path,
    config: RunConfig,
    features: str,
    spec: FeatureSpec,
    units: Sequence[Unit],
    classes: Sequence[int],
    num_patches: int,
) -> Path:
    """The folder that holds `init/`, computed if it is not there.

    Args:
        root: where starts are kept, beside the features they belong to.
        config: the trial's configuration.
        features: folder or URL of the feature cache.
        spec: what the cache holds.
        units: units of the training split.
        classes: classes whose patches are clustered.
        num_patches: N, patches an image.

    Raises:
        ValueError: fewer distinct patches than clusters.
    """
    target = root / start_key(config, classes)
    if has_start(target):
        return target
    root.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix=_PART, dir=root))
    try:
        own.chmod(0o755)  # other users of a shared disk may read it
        make_start(
            features,
            units,
            classes,
            config,
            num_patches=num_patches,
            below=spec.sample_below,
            init=own / "init",
        )
        with suppress(OSError):  # another was faster: a folder that holds files stays
            os.rename(own, target)
    finally:
        shutil.rmtree(own, ignore_errors=True)
    if not has_start(target):
        raise ValueError(f"{target}: cannot be written; see that the folder is writable")
    return target


def sweep(root: Path, *, older_than: float = _STALE_S) -> int:
    """Delete what killed writers left; returns how many folders that were."""
    swept = 0
    for folder in root.glob(f"{_PART}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > older_than:
                shutil.rmtree(folder, ignore_errors=True)
                swept += 1
    return swept
