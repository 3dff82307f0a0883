"""A job that is stopped in the middle of training and submitted again."""

from pathlib import Path

import pytest
import yaml

from fault_runs import (
    CONFIG,
    Ended,
    Started,
    assert_same_result,
    config_of,
    lines_with,
    record,
    stage_seconds,
)
from ray_head import ray_head


@pytest.mark.slow
def test_a_job_that_was_stopped_and_submitted_again_ends_as_if_it_had_not_been(
    tiny_runs: Path, uninterrupted: Ended
) -> None:
    with ray_head() as head:
        (head.checkout / "job.yaml").write_text(yaml.safe_dump(config_of(tiny_runs, CONFIG)))
        job = ("submit", "--address", head.address, "--config", "job.yaml", "--run-id", "job")
        run = tiny_runs / "runs" / "job"
        first = Started(head.start(*job), run)
        first.wait_for_checkpoints(20)
        stopped = head.run("stop", "job", "--address", head.address)[1]
        assert "STOPPED" in stopped
        first.end(130)  # as after ^C
        again = Started(head.start(*job), run).end()
    told = [*stopped.splitlines(), *lines_with(again, "job job-2 at", "there already")]
    assert "there already: init/centroids.npy" in again.output
    # The reference has no job around it: what is repeated shows in the stage of training.
    seconds = stage_seconds(again.output, "training")
    record(
        "a job is stopped and submitted again",
        told,
        tiny_runs,
        second_training_s=seconds,
        difference=assert_same_result(run, uninterrupted.folder),
    )
