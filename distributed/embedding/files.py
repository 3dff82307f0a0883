"""What the embedding pass found, as files: every stage after it starts from them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed.embedding.embed import Embedded, EmbeddedImages
from vgse.embeddings import ClassSums
from vgse.files import read_arrays, written_whole
from vgse.run_folder import SPLITS, ImageFeatures, read_image_features, write_image_features

FILES = ("image_features.npz", "embedded.npz")
_ROWS = ("rows", "assignments", "strongest", "scores")
_SUMS = ("sums", "counts", "contingency")


def save_embedded(folder: Path, embedded: Embedded) -> None:
    """Write image_features.npz, for users, and embedded.npz, for the stages that follow.

    The second holds per image its shard and place, exact assignments, and per split the sums.
    """
    images = embedded.images
    write_image_features(
        folder,
        ImageFeatures(
            features=images.features,
            labels=images.labels,
            split=np.array([SPLITS.index(name) for name in images.splits], np.uint8),
            keys=images.keys,
            assignments=images.assignments.astype(np.float16),
            sources=images.sources,
        ),
    )
    files, codes = np.unique(np.array(images.shards), return_inverse=True)
    arrays: dict[str, NDArray[Any]] = {"shard_files": files, "shards": codes.astype(np.int32)}
    arrays |= {name: getattr(images, name) for name in _ROWS}
    if images.start_assignments is not None:
        arrays["start_assignments"] = images.start_assignments
    for prefix, sums in (("sums", embedded.sums), ("start_sums", embedded.start_sums)):
        for split, of_split in sums.items():
            for part in _SUMS:
                arrays[f"{prefix}.{split}.{part}"] = getattr(of_split, part)
    with written_whole(folder / "embedded.npz") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # large, and hardly compressible


def load_embedded(folder: Path) -> Embedded:
    """What `save_embedded` wrote."""
    features = read_image_features(folder)
    arrays = read_arrays(folder / "embedded.npz")
    images = EmbeddedImages(
        keys=features.keys,
        sources=features.sources or [""] * len(features.keys),
        shards=arrays["shard_files"][arrays["shards"]].tolist(),
        splits=[SPLITS[number] for number in features.split],
        labels=features.labels,
        features=features.features,
        start_assignments=arrays.get("start_assignments"),
        **{name: arrays[name] for name in _ROWS},
    )
    sums: dict[str, dict[str, ClassSums]] = {"sums": {}, "start_sums": {}}
    for prefix, of_prefix in sums.items():
        for split in SPLITS:
            if f"{prefix}.{split}.sums" in arrays:
                parts = (arrays[f"{prefix}.{split}.{part}"] for part in _SUMS)
                of_prefix[split] = ClassSums(*parts)
    return Embedded(sums["sums"], sums["start_sums"], images)
