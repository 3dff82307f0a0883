"""What a run folder says of the run in it: made with which configuration, finished or not."""

import yaml

from distributed.prepare import learned
from distributed.run_storage import absolute, file_sizes, join, read, write
from shards.access import FIRST
from vgse.config import RunConfig, leaves, to_dict

LAST = "report.html"  # what the last stage writes
_RESULTS = ("class_embeddings.npz", "relations.npz", "evaluation.json", LAST)


def check_run_folder(run: str, config: RunConfig, fingerprint: str, *, resume: bool) -> bool:
    """Make the run folder, or see that it holds a run of the same configuration and data.

    Args:
        run: folder or URL.
        config: the configuration, to name what differs.
        fingerprint: of all that decides what is learned.
        resume: allow a finished run.

    Returns:
        Whether the run was finished.

    Raises:
        ValueError: a finished run without `resume`, one of another configuration or other data,
            or a store that cannot be reached or written.
    """
    there = file_sizes(run, retry=FIRST)
    finished = LAST in there
    if finished and not resume:
        raise ValueError(
            f"{run}: this run is finished ({', '.join(n for n in _RESULTS if n in there)} are "
            "there already); choose another --run-id, or add --resume to redo what follows "
            "the embedding"
        )
    mark = join(run, "init/fingerprint")
    try:
        before = read(mark, retry=FIRST).decode(errors="replace")
    except FileNotFoundError:
        before = fingerprint
    if before != fingerprint:
        raise ValueError(f"{run}: {_difference(run, config)}; choose another --run-id")
    write(mark, fingerprint.encode(), retry=FIRST)
    return finished


def write_config(config: RunConfig, run: str) -> None:
    """Write the resolved configuration beside the results."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    write(join(absolute(run), "config.yaml"), text.encode(), retry=FIRST)


def _difference(run: str, config: RunConfig) -> str:
    """What a run was made with, in comparison."""
    try:
        content = yaml.safe_load(read(join(run, "config.yaml"), retry=FIRST))
        old, new = (dict(leaves(learned(tree))) for tree in (content, to_dict(config)))
    except (FileNotFoundError, yaml.YAMLError, AttributeError, TypeError):
        return "made with another configuration or other data"
    changed = [
        f"{name} was {old.get(name, 'unknown')!r} and is {new.get(name, 'unknown')!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if not changed:
        return "made with other data: the shards or the word vectors have changed"
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"made with another configuration: {'; '.join(changed[:3])}{more}"
