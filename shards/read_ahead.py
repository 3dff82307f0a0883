"""What is asked for next, fetched in the background. Apart: the GPU benchmark lacks fsspec."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


def read_ahead(
    requests: Iterable[Request], fetch: Callable[[Request], Result], depth: int
) -> Generator[tuple[Request, Result], None, None]:
    """Every request with what `fetch` gives for it, in order; at most `depth` more are fetched in
    threads meanwhile. `requests` is advanced in the caller's thread."""
    if depth < 1:
        for request in requests:
            yield request, fetch(request)
        return
    pool = ThreadPoolExecutor(depth, thread_name_prefix="read-ahead")
    waiting: deque[tuple[Request, Future[Result]]] = deque()
    try:
        for request in requests:
            waiting.append((request, pool.submit(fetch, request)))
            if len(waiting) > depth:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
