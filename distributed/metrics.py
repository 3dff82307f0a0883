"""Figures of every epoch, kept as JSON lines."""

import json
from pathlib import Path
from typing import Any

from distributed.run_storage import absolute, join, read, write

FILE = "metrics.jsonl"


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, one an epoch; empty when there is no such file."""
    try:
        text = read(join(absolute(run), FILE)).decode()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines() if line]


def append_metrics(run: str | Path, row: dict[str, Any]) -> None:
    """Add an epoch's row; rows of a lost attempt at the same or later epochs make way."""
    rows = [kept for kept in read_metrics(run) if kept["epoch"] < row["epoch"]] + [row]
    text = "".join(json.dumps(kept) + "\n" for kept in rows)
    write(join(absolute(run), FILE), text.encode())
