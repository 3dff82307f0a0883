"""Many remote calls, few of them in flight."""

from collections.abc import Iterator
from typing import Any

import ray
import ray.exceptions

from distributed.bookkeeper import one_line


def results_of(calls: Iterator[tuple[Any, tuple[Any, ...]]], *, limit: int) -> Iterator[Any]:
    """Results of remote calls as they come, with at most `limit` of them in flight."""
    flying: list[Any] = []
    for function, arguments in calls:
        flying.append(function.remote(*arguments))
        if len(flying) >= limit:
            done, flying = ray.wait(flying)
            yield from map(result_of, done)
    while flying:
        done, flying = ray.wait(flying)
        yield from map(result_of, done)


def result_of(call: Any) -> Any:
    """The result of a remote call.

    Raises:
        ValueError: the one that ended the call, without Ray's account of where, or one line on why
            Ray lost the call and all its repetitions.
    """
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise ValueError(f"{one_line(error)}; run the same command again to go on") from error
