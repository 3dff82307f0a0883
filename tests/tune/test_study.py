"""The journal of a search: what it keeps, and what a killed writer may leave in it."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from tune.searcher import JournalSearch
from tune.space import Dimension
from tune.study import JOURNAL, TrialRecord, open_journal, open_study, ranked, read_trials
from vgse.config import RunConfig

SPACE = {"loss.entropy": Dimension(0.1, 2), "model.num_clusters": Dimension(choices=[150, 200])}


def resumed(folder: Path) -> JournalSearch:
    return JournalSearch(open_journal(folder, write=True), "search", RunConfig(), SPACE)


def report_epochs(source: JournalSearch, trial_id: str, epochs: int) -> None:
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "objective": epoch / 100, "loss": 1 / epoch, "seconds": 0.5}
        source.on_trial_result(trial_id, row)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search whose second trial runs when its driver is killed."""
    folder = tmp_path_factory.mktemp("search")
    source = resumed(folder)
    for trial_id in "ab":
        source.suggest(trial_id)
        report_epochs(source, trial_id, 2)
    source.on_trial_complete("a", {"epoch": 3, "objective": 0.5})
    return folder


def test_a_journal_cut_at_any_byte_of_its_last_lines_is_read_and_written_on(
    folder: Path, tmp_path: Path
) -> None:
    content = (folder / JOURNAL).read_bytes()
    last = content.splitlines(keepends=True)[-2:]
    shutil.copytree(folder, tmp_path / "cut")
    path = tmp_path / "cut" / JOURNAL
    for size in range(len(content) - sum(map(len, last)), len(content) + 1):
        path.write_bytes(content[:size])
        assert [record.name for record in read_trials(path.parent)] == ["0000", "0001"]
        study = open_study(open_journal(path.parent, write=True), "search", {})
        study.set_user_attr("size", size)
        assert len(read_trials(path.parent)) == 2
        assert path.read_bytes().startswith(content[:size].rpartition(b"\n")[0])


def test_optuna_alone_could_not_go_on_after_half_a_line(folder: Path, tmp_path: Path) -> None:
    """The control: what cutting is for."""
    path = tmp_path / JOURNAL
    path.write_bytes((folder / JOURNAL).read_bytes()[:-5])
    study = optuna.load_study(study_name="search", storage=open_journal(tmp_path))
    study.set_user_attr("joined to", "half a line")
    mended = Path(shutil.copytree(tmp_path, tmp_path / "mended"))
    with pytest.raises(json.JSONDecodeError):
        study.set_user_attr("the next", "line")
    with pytest.raises(ValueError, match="is damaged"):
        read_trials(tmp_path)
    resumed(mended).suggest("a")
    assert len(read_trials(mended)) == 2


def write_without_end(folder: Path) -> None:
    source = resumed(folder)
    source.suggest("a")
    for epoch in range(1, 100_000):
        source.on_trial_result("a", {"epoch": epoch, "objective": 0.5, "loss": 1.0})


@pytest.mark.filterwarnings("ignore:The value of `grace_period`")  # of live writers
@pytest.mark.parametrize("writes", [1, 40, 90])
def test_a_driver_killed_within_a_write_loses_no_row_before_it(
    tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune.study._DEAD_LOCK_S", 1)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=write_without_end, args=(tmp_path,), daemon=True)
    process.start()
    path = tmp_path / JOURNAL
    while not path.exists() or path.read_bytes().count(b'"step"') < writes:
        time.sleep(0.001)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = read_trials(tmp_path)
    assert len(before) == 1 and before[0].epoch >= writes
    source = resumed(tmp_path)
    assert source.suggest("b")["trial"] == "0000"
    source.on_trial_result("b", {"epoch": 100_000, "objective": 0.9})
    after = read_trials(tmp_path)[0]
    assert after.history[:-1] == before[0].history and after.epoch == 100_000


def test_folders_of_earlier_versions_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "0000.json").write_text("{}")
    with pytest.raises(ValueError, match=r"JSON files of an earlier version.*search again"):
        read_trials(tmp_path)
    with pytest.raises(ValueError, match="earlier version"):
        open_journal(tmp_path, write=True)


def test_reading_a_folder_writes_nothing(tmp_path: Path) -> None:
    assert read_trials(tmp_path) == [] and not list(tmp_path.iterdir())


def test_the_best_trial_is_one_that_finished(folder: Path) -> None:
    record = TrialRecord("0001", {}, "finished", "", [{"epoch": 2, "objective": 0.25}], 2, "")
    high: Any = [{"epoch": 1, "objective": 0.9}]
    stopped = replace(record, name="0002", state="stopped", history=high)
    failed = replace(record, name="0003", state="failed", history=high)
    better = replace(record, name="0004", history=[{"epoch": 2, "objective": 0.26}])
    assert [r.name for r in ranked([failed, stopped, record, better])] == ["0004", "0001", "0002"]


def test_the_dashboard_opens_a_journal(folder: Path) -> None:
    storage = pytest.importorskip("optuna_dashboard._storage_url").get_storage(
        str(folder / JOURNAL)
    )
    assert optuna.get_all_study_names(storage) == ["search"]
