"""Checkpoints that were on their way when a worker, a driver or a disk's room ended."""

import json

from pyarrow.fs import FileSelector, FileSystem, FileType

from distributed.ray_storage import ray_storage

_LIST = "checkpoint_manager_snapshot.json"  # Ray's: what is in it can be resumed


def remove_leftovers(run: str) -> None:
    """Delete what is half written of a run that is not under way: checkpoint folders that Ray does
    not know, and lists of checkpoints that did not take their place."""
    parent, _, name = run.rpartition("/")
    path, filesystem = ray_storage(parent)
    folder = f"{path}/{name}"
    known = _committed(filesystem, f"{folder}/{_LIST}")
    for entry in filesystem.get_file_info(FileSelector(folder, allow_not_found=True)):
        name = entry.path.rstrip("/").rpartition("/")[2]
        is_folder = entry.type == FileType.Directory
        if is_folder and name.startswith("checkpoint_") and name not in known:
            filesystem.delete_dir(entry.path)
        elif not is_folder and name.startswith(f".{_LIST}."):
            filesystem.delete_file(entry.path)


def _committed(filesystem: FileSystem, path: str) -> set[str]:
    """Names of the checkpoints that are complete; none before there is a list of them."""
    if filesystem.get_file_info(path).type == FileType.NotFound:
        return set()
    with filesystem.open_input_stream(path) as stream:
        content = json.loads(stream.read())
    entries = [*content["checkpoint_results"], content["latest_checkpoint_result"]]
    return {entry["checkpoint_dir_name"] for entry in entries if entry}
