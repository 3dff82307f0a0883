"""What a run says of itself when it ends."""

import re
from pathlib import Path

import pytest

from distributed.embedding.results import explain_loading
from distributed.train.metrics import append_metrics, read_metrics
from vgse.config import RunConfig

ROW = {"loader_stall": 0.6, "loader_read_seconds": 1.0, "loader_decode_seconds": 8.0}


def test_nothing_is_said_where_training_hardly_waits_or_features_are_cached() -> None:
    assert explain_loading(RunConfig(), {**ROW, "loader_stall": 0.06}) is not None
    assert explain_loading(RunConfig(), {**ROW, "loader_stall": 0.05}) is None
    assert explain_loading(RunConfig(), {"loader_stall": 0.6}) is None


def test_rows_of_a_lost_attempt_make_way(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        append_metrics(tmp_path, {"epoch": epoch, "loss": 1.0})
    append_metrics(tmp_path, {"epoch": 2, "loss": 0.5})
    assert read_metrics(tmp_path) == [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}]


def times(**seconds: float) -> dict[str, float]:
    return {f"loader_{name}_seconds": value for name, value in seconds.items()}


SLOW = [
    (times(read=8, decode=1, cut=1), 2, True, "80% of theirs waiting for the network: keep s"),
    (times(read=8, decode=1, cut=1), 2, False, "waiting for the disk: move the shards"),
    (times(read=1, decode=7, cut=2), 2, False, r"JPEGs: raise cluster.loader_w.*2\) if"),
    (times(read=1, decode=2, cut=6, idle=1), 4, False, "resizing and copying pictures: raise"),
    (times(read=1, decode=2, cut=1, idle=9), 4, False, "handing batches over: pack with"),
    (times(read=1, decode=7, cut=2, idle=9), 0, False, "70% of theirs decoding JPEGs: raise"),
]


@pytest.mark.parametrize(("row", "workers", "remote", "message"), SLOW)
def test_the_slowest_part_is_named_with_what_to_change(
    row: dict[str, float], workers: int, remote: bool, message: str
) -> None:
    config = RunConfig()
    config.cluster.loader_workers = workers
    config.data.shards = "s3://bucket/set" if remote else "packed"
    sentence = explain_loading(config, {**row, "loader_stall": 0.4})
    assert sentence is not None and "\n" not in sentence
    assert sentence.startswith("training waited for data 40% of the time")
    assert re.search(message, sentence)
