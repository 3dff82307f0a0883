"""A peer in a process, and if need be an environment, of its own; it takes commands by pipe.

    PYTHON -m benchmarks.loader.peers NAME SCRATCH

NAME is litdata, streaming or ray; SCRATCH gets the peer's own format. A command is a line of
JSON {"folder" of tar shards, "way", "side", "count"}; the answer is {"seconds", "images",
"bytes"}, the seconds being CPU time of the process, for Ray of its whole cluster.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.loader.samples import (
    BATCH_SIZE,
    Part,
    Raw,
    assemble,
    bare_tar,
    batched,
    boxes_of,
    consume,
    endless,
    one_thread,
)

PACKAGES = {"litdata": "litdata", "streaming": "mosaicml-streaming", "ray": "ray"}
Answer = tuple[float, int, int]
Command = Callable[[str, str, int, int], Answer]
Open = Callable[[str, str], Iterator[Raw]]


def shards_in(folder: str) -> list[str]:
    """The tar shards of a folder, in order."""
    return sorted(str(path) for path in Path(folder).glob("train-*.tar"))


def records(folder: str) -> Iterator[dict[str, Any]]:
    """The samples of all shards, with the same content as there."""
    for path in shards_in(folder):
        for jpeg, text in bare_tar(path):
            yield {"jpg": jpeg, "boxes": boxes_of(text), "class": json.loads(text)["class"]}


def open_litdata(folder: str, scratch: str) -> Iterator[Raw]:
    """Samples of a litdata data set in chunks of 16 MB.

    At 64 MB all pictures are one chunk, and reading those of 108 kB takes 20 times as long.
    """
    import litdata
    from litdata.streaming.writer import BinaryWriter

    Path(scratch).mkdir(parents=True, exist_ok=True)
    writer = BinaryWriter(scratch, chunk_bytes="16MB")
    for number, record in enumerate(records(folder)):
        writer.add_item(number, record)
    writer.done()
    writer.merge()
    data = litdata.StreamingDataset(scratch, shuffle=True, seed=0)
    loader = litdata.StreamingDataLoader(
        data, batch_size=BATCH_SIZE, num_workers=0, collate_fn=list
    )
    return ((r["jpg"], r["boxes"]) for batch in endless(lambda: loader) for r in batch)


def open_streaming(folder: str, scratch: str) -> Iterator[Raw]:
    """Samples of a MosaicML streaming data set in shards of 16 MB."""
    import streaming
    from torch.utils.data import DataLoader

    columns = {"jpg": "bytes", "boxes": "ndarray:float32", "class": "str"}
    with streaming.MDSWriter(out=scratch, columns=columns, size_limit=1 << 24) as writer:
        for record in records(folder):
            writer.write(record)
    data = streaming.StreamingDataset(local=scratch, shuffle=True, batch_size=BATCH_SIZE)
    loader = DataLoader(data, batch_size=BATCH_SIZE, num_workers=0, collate_fn=list)
    return ((r["jpg"], r["boxes"]) for batch in endless(lambda: loader) for r in batch)


OPEN = {"litdata": open_litdata, "streaming": open_streaming}


def in_process(opened: Open, scratch: str) -> Command:
    """Commands over samples that this process reads itself; one reader a folder."""
    readers: dict[str, Iterator[Raw]] = {}
    ways: dict[tuple[str, str, int], Iterator[Part]] = {}

    def run(folder: str, way: str, side: int, count: int) -> Answer:
        if folder not in readers:
            readers[folder] = opened(folder, f"{scratch}/{len(readers)}")
        key = folder, way, side
        if key not in ways:
            ways[key] = batched(readers[folder], way, side)
        batches = ways[key]
        start = time.process_time()
        images, size = consume(batches, count)
        return time.process_time() - start, images, size

    return run


class CutRow:
    """Turns a row of Ray Data into patches, as its read task decodes it."""

    def __init__(self, way: str, side: int) -> None:
        self.way, self.side = way, side
        self.scratch: NDArray[np.uint8] | None = None  # Ray would send it read-only

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The patches of one picture."""
        one_thread()
        if self.scratch is None:
            self.scratch = np.empty(1 << 23, np.uint8)
        sample = row["jpg"], boxes_of(row["json"])
        return {"patches": np.asarray(assemble([sample], self.way, self.side, self.scratch)[0])}


def family_seconds() -> float:
    """CPU time so far of this process and all that descend from it, ended ones included."""
    rows = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = path.read_text().rpartition(")")[2].split()
            rows[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    family = {os.getpid()}
    while found := {pid for pid, (parent, _) in rows.items() if parent in family} - family:
        family |= found
    return sum(rows[pid][1] for pid in family) / os.sysconf("SC_CLK_TCK")


def open_ray() -> Command:
    """Commands that each run Ray Data over `count` images, on a cluster of one core."""
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=2 << 30,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False

    def run(folder: str, way: str, side: int, count: int) -> Answer:
        paths = shards_in(folder)
        held = sum(1 for _ in bare_tar(paths[0]))
        start, images, size = family_seconds(), 0, 0
        data = ray.data.read_webdataset(paths[: max(1, count // held)], decoder=None)
        data = data if way == "read" else data.map(CutRow(way, side))
        for batch in data.iter_batches(batch_size=BATCH_SIZE, batch_format="numpy"):
            column = batch["jpg" if way == "read" else "patches"]
            images += len(column)
            size += sum(len(jpeg) for jpeg in column) if way == "read" else column.nbytes
        return family_seconds() - start, images, size

    return run


def main() -> None:
    """Answer commands until the pipe closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print is no answer
    one_thread()

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        name, scratch = sys.argv[1:]
        run = open_ray() if name == "ray" else in_process(OPEN[name], scratch)
        if name in OPEN:
            __import__(name)  # fails before the rounds
        answer(version=version(PACKAGES[name]))
        for line in sys.stdin:
            seconds, images, size = run(**json.loads(line))
            answer(seconds=seconds, images=images, bytes=size)
    except Exception as error:  # becomes the peer's row
        last = str(error).strip().splitlines() or [""]  # Ray's begin with a traceback
        answer(error=f"{type(error).__name__}: {last[-1]}")


if __name__ == "__main__":
    main()
