"""Retries, read-ahead and passes: bounded, in order, and no more than needed."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.objects import Retry, wait_before, with_retries
from shards.read_ahead import read_ahead
from shards.sampler import epoch_order, pieces
from shards.samples import plan_parts

FAST = Retry(attempts=3, first_wait_s=0.001)


class Flaky:
    """Raises the errors one after the other, then returns 7."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


def test_an_error_that_passes_is_waited_out() -> None:
    work = Flaky(ConnectionResetError("gone"), TimeoutError())
    assert with_retries(work, "s3://b/x", "read", FAST) == 7 and work.calls == 3


def test_the_last_attempt_says_where_how_often_and_what_to_do() -> None:
    work = Flaky(*[ConnectionResetError("gone\nfor good")] * 3)
    with pytest.raises(ValueError, match=r"^s3://b/x: cannot be read, 3 attempts in 0") as caught:
        with_retries(work, "s3://b/x", "read", FAST)
    assert work.calls == 3 and "\n" not in str(caught.value)
    assert "ConnectionResetError: gone for good" in str(caught.value)


@pytest.mark.parametrize("error", [PermissionError("denied"), OSError(22, "Invalid argument")])
def test_what_cannot_pass_is_not_tried_again(error: Exception) -> None:
    work = Flaky(error)
    with pytest.raises(ValueError, match=r"cannot be listed .* credentials"):
        with_retries(work, "s3://b", "listed", FAST)
    assert work.calls == 1


def test_a_file_that_is_not_there_stays_that_error() -> None:
    work = Flaky(FileNotFoundError("x"))
    with pytest.raises(FileNotFoundError):
        with_retries(work, "s3://b/x", "read", FAST)
    assert work.calls == 1


def test_waits_double_up_to_a_bound_and_differ() -> None:
    retry = Retry(attempts=20, first_wait_s=1, longest_wait_s=5)
    for number, most in enumerate([1, 2, 4, 5, 5], 1):
        waits = [wait_before(number, retry) for _ in range(50)]
        assert most / 2 <= min(waits) < max(waits) <= most


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_reading_ahead_is_in_order_and_bounded(depth: int) -> None:
    asked: list[int] = []
    ran: list[int] = []
    gate = threading.Lock()

    def requests() -> Iterator[int]:
        for number in range(12):
            asked.append(number)
            yield number

    def fetch(number: int) -> int:
        with gate:
            ran.append(number)
        time.sleep(0.002 * (number % 3))
        return number * number

    for used, (number, square) in enumerate(read_ahead(requests(), fetch, depth)):
        assert (number, square) == (used, used * used)
        time.sleep(0.01)
        assert len(asked) <= used + 1 + depth and len(ran) <= used + 1 + depth
    assert used == 11 and sorted(ran) == list(range(12))


def test_reading_ahead_overlaps_fetching_and_use() -> None:
    def fetch(number: int) -> int:
        time.sleep(0.05)
        return number

    def seconds(depth: int) -> float:
        started = time.monotonic()
        for _ in read_ahead(range(8), fetch, depth):
            time.sleep(0.05)
        return time.monotonic() - started

    assert seconds(2) < 0.75 * seconds(0)


def test_an_error_ahead_comes_when_its_turn_comes() -> None:
    def fetch(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    found = []
    with pytest.raises(ValueError, match="two"):
        found.extend(number for number, _ in read_ahead(range(9), fetch, 2))
    assert found == [0, 1]


def test_who_stops_early_leaves_no_fetch_behind() -> None:
    ran: list[int] = []
    ahead = read_ahead(range(100), ran.append, 2)
    next(ahead)
    ahead.close()
    time.sleep(0.05)
    assert len(ran) <= 3


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=5),
    st.integers(1, 90),
    st.integers(1, 70),
    st.data(),
)
def test_passes_hold_every_piece_in_order_and_move_forward(
    counts: list[int], block_size: int, stride: int, data: st.DataObject
) -> None:
    order = epoch_order(counts, seed=2, epoch=1, block_size=block_size)
    cuts = sorted(data.draw(st.lists(st.integers(0, order.total), max_size=6)))
    ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
    wanted = [piece for low, high in ranges for piece in pieces(order, low, high)]
    found = list(plan_parts(iter(wanted), stride))
    flat = [(one.shard, piece) for one in found for piece in one.wanted]
    assert [shard for shard, _ in flat] == [shard for shard, _ in wanted]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(flat, wanted, strict=True))
    for one in found:
        place = one.start
        for piece in one.wanted:
            assert piece.min() >= place
            place = int(piece.max()) + 1
        assert one.stop == place


def test_a_whole_epoch_takes_one_pass_a_shard() -> None:
    order = epoch_order([300, 500, 200], seed=0, epoch=0, block_size=64)
    wanted = list(pieces(order, 0, order.total))
    assert len(wanted) > 15
    assert len(list(plan_parts(wanted, 64))) == 3


def test_a_far_piece_of_a_shard_is_a_pass_of_its_own() -> None:
    near, far = np.arange(0, 10), np.arange(500, 510)
    passes = list(plan_parts([(0, near), (0, far)], 64))
    assert [(one.start, one.stop) for one in passes] == [(0, 10), (500, 510)]
