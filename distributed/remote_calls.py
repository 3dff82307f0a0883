"""Many remote calls, few of them in flight."""

from collections.abc import Iterator
from typing import Any

import ray


def results_of(calls: Iterator[tuple[Any, tuple[Any, ...]]], *, limit: int) -> Iterator[Any]:
    """Results of remote calls as they come, with at most `limit` of them in flight."""
    flying: list[Any] = []
    for function, arguments in calls:
        flying.append(function.remote(*arguments))
        if len(flying) >= limit:
            done, flying = ray.wait(flying)
            yield from ray.get(done)
    while flying:
        done, flying = ray.wait(flying)
        yield from ray.get(done)
