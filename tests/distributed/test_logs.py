"""What run.log holds of a driver and of its workers."""

import logging
import re
import uuid
from pathlib import Path

import fsspec
import pytest
import ray.train

from distributed.display import Display
from distributed.logs import LOG, driver_log, worker_log
from distributed.run import train
from distributed.stages import working_folder
from tiny import make_tiny
from vgse.config import ClusterConfig, DataConfig, ModelConfig, RunConfig, TrainingConfig
from vgse.errors import UserError

logger = logging.getLogger("distributed.test")


def test_the_log_holds_the_display_and_why_a_run_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    @driver_log(tmp_path, verbose=False)
    def fail() -> None:
        with Display() as display, display.stage("features") as stage:
            stage.say("halfway [1/2]")
            logger.info("more")
            logging.getLogger("library").error("trouble")
            logging.getLogger("library").setLevel(logging.INFO)
            logging.getLogger("library").info("chatter")
            raise UserError("data.shards: no such folder")

    with pytest.raises(UserError):
        fail()
    text = (tmp_path / LOG).read_text()
    assert "driver distributed.display: features    halfway [1/2]\n" in text
    assert "driver distributed.test: more\n" in text
    assert "trouble" in text and "chatter" not in text
    assert "ERROR" in text and "data.shards: no such folder" in text and "Traceback" not in text
    assert capsys.readouterr().err == ""


def test_verbose_shows_the_log_and_no_line_of_the_display_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with driver_log(tmp_path, verbose=True), Display() as display:
        display.line("shown")
        logger.info("more")
    shown = capsys.readouterr()
    assert shown.out == "shown\n"
    assert "more" in shown.err and "shown" not in shown.err


def test_a_workers_bug_is_logged_with_its_rank_and_traceback(tmp_path: Path) -> None:
    sent: list[logging.LogRecord] = []
    with pytest.raises(ZeroDivisionError), worker_log(sent.append, 3):
        _ = 1 / 0
    assert all(record.exc_info is None for record in sent), "what is sent is text"
    with driver_log(tmp_path, verbose=False):
        for record in sent:
            logging.getLogger(record.name).handle(record)
    text = (tmp_path / LOG).read_text()
    assert "ERROR rank 3 distributed.logs: training stops" in text and "driver" not in text
    assert "Traceback" in text and "ZeroDivisionError" in text


def test_the_log_of_a_run_at_a_url_goes_there_and_is_appended_to() -> None:
    url = f"memory://{uuid.uuid4().hex}/run"
    for line in ("first", "second"):
        with working_folder(url) as run, driver_log(run.local, verbose=False):
            logger.info(line)
    text = fsspec.filesystem("memory").cat_file(f"{url}/{LOG}").decode()
    assert re.search("first\n.*second\n", text)


@pytest.mark.slow
def test_a_bug_on_a_worker_is_tried_again_and_ends_with_its_traceback(
    ray_session: None, tmp_path: Path
) -> None:
    make_tiny(tmp_path)
    config = RunConfig(
        data=DataConfig(shards=str(tmp_path / "packed"), words=str(tmp_path / "words.txt")),
        model=ModelConfig(num_clusters=20, projection=64),
        training=TrainingConfig(epochs=1, batch_size=60),
        cluster=ClusterConfig(num_workers=1, max_failures=1),
        storage=str(tmp_path / "runs"),
    )
    run = train(config, "bug")
    log = (run / LOG).read_text()
    assert re.search(r"rank 0 distributed.train.ray_trainer: training from k-means", log)
    for path in run.glob("checkpoint_*/state.json"):
        path.write_text("{}")  # which nothing of ours writes
    (run / "stages.json").unlink()
    (run / "report.html").unlink()
    with pytest.raises(ray.train.TrainingFailedError, match="KeyError"):
        train(config, "bug")
    log = (run / LOG).read_text().removeprefix(log)
    assert log.count("rank 0 distributed.logs: training stops") == 2
    assert "1 of 1 restarts" in log and "no restart is left of 1" in log
    assert "KeyError: 'position'" in log
