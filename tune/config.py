"""The configuration of a search."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from shards.objects import is_remote
from tune.space import Dimension, check_space, default_space
from vgse.config import LARGEST_SEED, RunConfig, bounded, check_fields, check_name, leaves, validate
from vgse.errors import UserError
from vgse.files import read_mapping, written_whole
from vgse.zsl.models import find_model

Objective = Literal[
    "zsl",
    "harmonic_mean",
    "seen",
    "unseen",
    "own_images",
    "own_images+zsl",
    "own_images+harmonic_mean",
]


@dataclass
class SearchConfig:
    """A search around one configuration of a run."""

    run: RunConfig = field(default_factory=RunConfig)
    """The run that is searched around, with the fields of `python -m distributed train`; in a
    YAML file also the path of another one, such as demo.yaml, relative to the file."""
    space: dict[str, Dimension] = field(default_factory=default_space)
    """For each dotted field of the run: low and high (log: true for a logarithmic scale), or
    choices."""
    trials: int = bounded(64, 1)
    """Trials, the default configuration among them, which comes first and is never stopped."""
    max_concurrent: int = bounded(0, 0)
    """Trials at the same time; 0 takes as many as the cluster has room for now. More waits for
    nodes that are added, with trials of one worker."""
    workers_per_trial: int = bounded(1, 1)
    """Training workers of a trial; above 1 each trial is a run of Ray Train."""
    gpus_per_trial: float = bounded(0.25, 0.01)
    """Share of a GPU that a trial of one worker takes where the cluster has GPUs."""
    objective: Objective = "own_images+harmonic_mean"
    """What is maximised. Through the relation, in class-wise folds of the seen classes that play
    the unseen ones: zsl (top-1 among them), or harmonic_mean, seen or unseen of generalised
    zero-shot learning. Under the clusters alone: own_images, how well they tell apart the images of
    the validation classes, which they never saw. Or the mean of own_images and one of the former:
    that with harmonic_mean ranks configurations like test images do on every data set tried."""
    models: list[str] = field(default_factory=lambda: ["prototype"])
    """Zero-shot models whose mean the objective is; in each fold with the hyper-parameters that the
    other folds choose."""
    grace_epochs: int = bounded(2, 1)
    """Epochs before which ASHA stops no trial."""
    reduction_factor: int = bounded(3, 2)
    """ASHA lets the best 1 in this many go on at each of its rungs."""
    collapse_share: float = bounded(0.1, 0, 1)
    """A trial with less than this share of its clusters in use is stopped as collapsed."""
    finalists: int = bounded(3, 0)
    """Best configurations that are retrained on all seen classes and scored on test images; 0
    leaves the test images alone."""
    max_failures: int = bounded(1, 0)
    """Times that a trial whose process died goes on from its last epoch before it counts as
    failed."""
    seed: int = bounded(0, 0, LARGEST_SEED)
    """Seed of the choices of the search."""


def check_search(config: SearchConfig) -> None:
    """Find what can be found wrong before a cluster is started."""
    check_fields(config)
    epochs = config.run.training.epochs
    if config.grace_epochs > epochs:
        raise UserError(
            f"grace_epochs is {config.grace_epochs}, but a trial has {epochs} epochs; lower it or "
            "raise run.training.epochs"
        )
    if not config.models:
        raise UserError("models is empty; name at least one, such as prototype")
    for name in config.models:
        find_model(name)
    try:
        validate(config.run)
    except UserError as error:
        raise UserError(f"run.{error}") from None
    if is_remote(config.run.storage):
        raise UserError(
            f"run.storage is {config.run.storage}; the folder of a search must lie on a disk that "
            "all nodes share"
        )
    check_space(config.run, config.space)


def search_folder(config: SearchConfig, search_id: str) -> Path:
    """Where a search keeps its files; UserError if the name is not one folder's."""
    check_name("--search-id", search_id)
    return (Path(config.run.storage).expanduser() / search_id).absolute()


def check_folder(folder: Path, config: SearchConfig, *, resume: bool) -> None:
    """See that a search may be made there, or resumed."""
    changeable = ("trials", "max_concurrent", "gpus_per_trial", "finalists", "max_failures")
    check_unchanged(
        *(folder / "search.yaml", to_dict(config), {"run": asdict(RunConfig())}),
        ("run.tracking.", *changeable),
        resume=resume,
        what="search",
        option="--search-id",
    )


def check_unchanged(
    path: Path,
    content: dict[str, Any],
    defaults: dict[str, Any],
    changeable: tuple[str, ...],
    *,
    resume: bool,
    what: str,
    option: str,
) -> None:
    """See that there is no file of a configuration yet, or to resume, that it holds the same but
    for fields that begin with one of `changeable`."""
    folder = path.parent
    if not resume:
        if path.is_file():
            raise UserError(
                f"{folder}: this {what} is there already; add --resume to go on with it, or choose "
                f"another {option}"
            )
        return
    if not path.is_file():
        raise UserError(f"{folder}: there is no {what} to resume; check {option} and storage")
    # Fields that there were not yet when it was written had their defaults.
    was = dict(leaves(defaults))
    was |= leaves(read_mapping(path, remedy=f"delete the folder and {what} again"))
    now = dict(leaves(content))
    for name in sorted(was.keys() | now.keys()):
        if not name.startswith(changeable) and was.get(name) != now.get(name):
            raise UserError(
                f"{path}: {name} was another when this {what} began; resume it with the same "
                f"configuration (or none: {option} alone), or choose another {option}"
            )


def to_dict(config: SearchConfig) -> dict[str, Any]:
    """The configuration as plain dicts and scalars; the space without what is not set."""
    content = asdict(config)
    content["space"] = {
        name: {key: value for key, value in dimension.items() if value not in (None, "", [])}
        for name, dimension in content["space"].items()
    }
    return content


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write a configuration."""
    with written_whole(path) as stream:
        stream.write(yaml.safe_dump(content, sort_keys=False).encode())
