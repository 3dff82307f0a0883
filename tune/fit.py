"""Whether all that a search can draw fits the data."""

from distributed.prepare import Prepared
from tune.config import SearchConfig


def check_against_data(config: SearchConfig, prepared: Prepared) -> None:
    """See that every value that can be drawn fits the data.

    Raises:
        ValueError: the field of the space that does not.
    """
    manifest = prepared.manifest
    # Patches of the classes that trials train on: k-means has no others.
    names = {manifest.class_names[index] for index in prepared.trained}
    images = sum(
        count
        for shard in manifest.shards_of("train")
        for name, count in shard.class_counts.items()
        if name in names
    )
    limits = {
        "model.num_clusters": (images * manifest.num_patches, "patches of the training classes"),
        "model.projection": (prepared.num_features, "features of the backbone"),
        "relations.alpha": (1 / len(prepared.trained), "that of equal weights"),
    }
    for name, (limit, what) in limits.items():
        if name not in config.space:
            continue
        dimension = config.space[name]
        values = [v for v in (dimension.high, *(dimension.choices or [])) if v is not None]
        most = max(float(value) for value in values)
        if most > limit:
            raise ValueError(
                f"space.{name} goes up to {most:g}, above {limit:g}, the number of {what}"
                if name != "relations.alpha"
                else f"space.{name} goes up to {most:g}; weights of at least that cannot sum to 1"
            )
