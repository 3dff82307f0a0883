"""Stages that are done once: `stages.json` of the run folder notes what each was made from."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.display import Display, Stage
from distributed.logs import LOG
from distributed.storage import download_file, file_sizes, read_bytes, upload_file, write_bytes
from shards.objects import is_remote, join_url
from vgse.errors import UserError
from vgse.files import sole_user

FILE = "stages.json"


@dataclass(frozen=True)
class RunFolder:
    """A run folder, and where its files are worked on: in place, or beside when at a URL."""

    url: str
    local: Path


@contextmanager
def working_folder(url: str) -> Iterator[RunFolder]:
    """The run folder, for this process alone; of one at a URL only report.html stays here."""
    if not is_remote(url):
        Path(url).mkdir(parents=True, exist_ok=True)
        with sole_user(Path(url)):
            yield RunFolder(url, Path(url))
        return
    name = url.rsplit("/", 1)[-1]
    local = Path(tempfile.mkdtemp(prefix="vgse-")) / name  # the report shows the folder's name
    local.mkdir()
    run = RunFolder(url, local)
    download(run, LOG)
    try:
        yield run
    finally:
        _send_log(run)
        for path in local.iterdir():
            if path.name != "report.html":
                path.unlink()
        if not any(local.iterdir()):
            local.rmdir()
            local.parent.rmdir()


def download(run: RunFolder, *names: str) -> None:
    """Bring those files of the run folder here that are there and not here yet."""
    missing = [name for name in names if not (run.local / name).is_file()]
    if is_remote(run.url) and missing:
        for name in file_sizes(run.url).keys() & missing:
            download_file(join_url(run.url, name), run.local / name)


def upload(run: RunFolder, *names: str) -> None:
    """Send files that were made here to the run folder."""
    if is_remote(run.url):
        for name in names:
            upload_file(run.local / name, join_url(run.url, name))


def finished_stages(url: str) -> dict[str, dict[str, Any]]:
    """The entries of stages.json by stage; nothing if it is missing or damaged."""
    try:
        content = json.loads(read_bytes(join_url(url, FILE)))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        content = None
    entries = content.items() if isinstance(content, dict) else []
    return {stage: entry for stage, entry in entries if isinstance(entry, dict)}


def digest(*inputs: Any) -> str:
    """One name for all that a stage is made from."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_done(url: str, stage: str, inputs: str) -> bool:
    """Whether a stage was finished with these inputs and its files have their length."""
    entry = finished_stages(url).get(stage, {})
    if entry.get("inputs") != inputs:
        return False
    present = file_sizes(url)
    return all(present.get(name) == size for name, size in entry.get("files", {}).items())


def finish_stage(
    run: RunFolder, stage: str, inputs: str, files: Sequence[str], **more: Any
) -> None:
    """Send a stage's files to the run folder, then note that it is finished."""
    upload(run, *files)
    sizes = {name: (run.local / name).stat().st_size for name in files}
    record = {**finished_stages(run.url), stage: {"inputs": inputs, "files": sizes, **more}}
    write_bytes(join_url(run.url, FILE), (json.dumps(record, indent=1) + "\n").encode())
    _send_log(run)


def _send_log(run: RunFolder) -> None:
    if (run.local / LOG).is_file():
        with suppress(UserError):  # the store is away: what ends the run, if anything, says so
            upload(run, LOG)


def run_stage(
    run: RunFolder,
    stage: str,
    inputs: str,
    files: Sequence[str],
    work: Callable[[Stage], None],
    display: Display,
    *,
    redo: bool = False,
) -> None:
    """Do a stage that writes `files` into `run.local`, unless it is done."""
    if not redo and is_done(run.url, stage, inputs):
        display.line(f"{stage:<11} there already: {', '.join(files)}")
        return
    with display.stage(stage) as shown:
        work(shown)
        finish_stage(run, stage, inputs, files)
