"""How long a group of workers waits for its room, which Ray takes from the environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from vgse.config import ClusterConfig

_NAME = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_ATTEMPTS = 4
_ELASTIC_S = 20.0


def start_failures(config: ClusterConfig) -> int:
    """Failed starts after which a training gives up; -1 never.

    Ray counts them over the whole run. An elastic group of the old size may fail to start once
    for each loss, until Ray has noticed that a node is gone.
    """
    if _elastic(config):
        return -1 if config.max_failures < 0 else config.max_failures + _START_ATTEMPTS
    return _START_ATTEMPTS - 1


@contextmanager
def start_timeout(config: ClusterConfig) -> Iterator[None]:
    """Let a group that is started inside wait as the configuration says.

    Ray's own minute is too short for a machine to be replaced, and too long for an elastic run,
    which goes on with fewer workers after it. A value that the user has set stays.
    """
    if _NAME in os.environ:
        yield
        return
    seconds = _ELASTIC_S if _elastic(config) else config.wait_for_workers / _START_ATTEMPTS
    os.environ[_NAME] = f"{seconds:g}"
    try:
        yield
    finally:
        del os.environ[_NAME]


def _elastic(config: ClusterConfig) -> bool:
    return config.min_workers not in (None, config.num_workers)
