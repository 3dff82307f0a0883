"""What a run says of itself when it ends."""

from pathlib import Path

from distributed.embedding.results import explain_loading
from distributed.train.metrics import append_metrics, read_metrics
from vgse.config import RunConfig

ROW = {"loader_stall": 0.6, "loader_read_seconds": 1.0, "loader_decode_seconds": 8.0}


def test_a_slow_loader_is_named_with_its_slowest_part() -> None:
    sentence = explain_loading(RunConfig(), ROW)
    assert sentence is not None
    assert "decoding JPEGs" in sentence
    assert "cluster.loader_workers" in sentence


def test_nothing_is_said_where_training_hardly_waits_or_features_are_cached() -> None:
    assert explain_loading(RunConfig(), {**ROW, "loader_stall": 0.01}) is None
    assert explain_loading(RunConfig(), {"loader_stall": 0.6}) is None


def test_rows_of_a_lost_attempt_make_way(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        append_metrics(tmp_path, {"epoch": epoch, "loss": 1.0})
    append_metrics(tmp_path, {"epoch": 2, "loss": 0.5})
    assert read_metrics(tmp_path) == [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}]
