"""The probes of benchmarks.scale on small made things, and what its page says of their values."""

from pathlib import Path

import pytest

from benchmarks.scale import made, page
from benchmarks.scale.probes import PROBES


@pytest.mark.parametrize("version", [1, 2])
def test_a_made_manifest_is_read_by_every_probe_of_manifests(tmp_path: Path, version: int) -> None:
    made.make_manifest(tmp_path / "m", 100, version)
    for name in ("manifest", "start", "loader", "check"):
        assert all(value >= 0 for value in PROBES[name](str(tmp_path / "m")).values())


def test_packing_asks_for_each_image_once(tmp_path: Path) -> None:
    made.make_tree(tmp_path / "tree", 600)
    assert PROBES["files"](str(tmp_path / "tree"))["calls"] < 1.1


def test_a_row_shows_what_was_measured_what_follows_and_its_growth() -> None:
    found = {
        "before": {"10": {"mb": 2.0}, "100": {"mb": 20.0}},
        "after": {"10": {"mb": 2.0}, "100": {"mb": 2.0}, "1000": {"mb": 2.0}},
    }
    assert page.cells(found, "mb", page.as_megabytes, [10, 100, 1000]) == [
        *("2 MB", "20 MB", "(200 MB)", "2 MB", "2 MB", "2 MB"),
        *("× 10", "× 1"),
    ]


def test_every_row_has_its_probe() -> None:
    assert list(page.ROWS) == list(PROBES)
