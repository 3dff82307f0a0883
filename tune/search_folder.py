"""The folder of a search: its configuration, kept for a resume, and its winner's."""

from pathlib import Path
from typing import Any

import yaml

from tune.config import CHANGEABLE, SearchConfig, to_dict
from tune.space import with_params
from tune.study import TrialRecord, read_trials
from vgse.config import RunConfig, leaves
from vgse.config import to_dict as run_to_dict
from vgse.errors import UserError
from vgse.files import read_mapping, written_whole

CONFIG = "search.yaml"
BEST = "best.yaml"


def check_folder(folder: Path, config: SearchConfig, *, resume: bool) -> list[TrialRecord]:
    """See that a search may be made there, or resumed; returns its trials."""
    path = folder / CONFIG
    there = path.is_file()
    if there and not resume:
        raise UserError(
            f"{folder}: this search is there already; add --resume to go on with it, or choose "
            "another --search-id"
        )
    if resume and not there:
        raise UserError(f"{folder}: there is no search to resume; check --search-id and storage")
    records = read_trials(folder)
    if there:
        before = read_mapping(path, remedy="delete the folder and search again")
        before["run"] = _completed(before.get("run"), run_to_dict(RunConfig()))
        was, now = dict(leaves(before)), dict(leaves(to_dict(config)))
        for name in sorted(was.keys() | now.keys()):
            same = was.get(name) == now.get(name)
            if (
                not same
                and name.partition(".")[0] not in CHANGEABLE
                and not name.startswith("run.tracking.")
            ):
                raise UserError(
                    f"{path}: {name} was another when this search began; resume it with the same "
                    "configuration (or none: --search-id alone), or choose another --search-id"
                )
    return records


def _completed(old: Any, defaults: dict[str, Any]) -> Any:
    """A configuration with the defaults of fields that there were not yet when it was written."""
    if not isinstance(old, dict):
        return old
    nested = {name: value for name, value in defaults.items() if isinstance(value, dict)}
    known = {k: _completed(v, nested[k]) if k in nested else v for k, v in old.items()}
    return {**defaults, **known}


def write_config(folder: Path, config: SearchConfig) -> None:
    """Write search.yaml."""
    _write_yaml(folder / CONFIG, to_dict(config))


def write_best(folder: Path, run: RunConfig, record: TrialRecord) -> None:
    """Write best.yaml, a configuration for `python -m distributed train --config`."""
    _write_yaml(folder / BEST, run_to_dict(with_params(run, record.params)))


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as stream:
        stream.write(yaml.safe_dump(content, sort_keys=False).encode())
