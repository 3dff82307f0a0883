"""Batches ahead of the step: the same ones, in the same order."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from distributed.train.prefetch import map_tensors, one_ahead, prefetch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    values: Tensor
    boxes: Tensor | None
    number: int


def batches(count: int = 5, size: int = 4) -> Iterator[Batch]:
    for number in range(count):
        boxes = torch.ones(size) if number % 2 else None
        yield Batch(torch.full((size,), number), boxes, number)


def test_on_a_cpu_batches_are_handed_through() -> None:
    made = list(batches())
    found = list(prefetch(made, CPU))
    assert [a is b for a, b in zip(found, made, strict=True)] == [True] * 5


def test_one_ahead_gives_the_same_items_in_order() -> None:
    found = list(one_ahead(batches()))
    assert [batch.number for batch in found] == [0, 1, 2, 3, 4]
    assert [batch.values.tolist() for batch in found] == [[n] * 4 for n in range(5)]
    assert list(one_ahead([])) == []


def test_the_next_item_is_taken_while_one_is_used() -> None:
    taken: list[int] = []
    told = threading.Condition()

    def source() -> Iterator[int]:
        for number in range(6):
            with told:
                taken.append(number)
                told.notify_all()
            yield number

    for number in one_ahead(source()):
        expected = min(number + 2, 6)
        with told:
            assert told.wait_for(lambda n=expected: len(taken) >= n, timeout=10)
            assert (
                len(taken) <= number + 3
            )  # bounded: what waits is one item, and one in the making


def test_an_error_of_the_source_arrives_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("a damaged shard")

    items = one_ahead(source())
    assert next(items) == 1
    with pytest.raises(ValueError, match="a damaged shard"):
        next(items)


def test_to_stop_early_ends_the_thread() -> None:
    before = set(threading.enumerate())  # threads of earlier tests may end meanwhile
    items = one_ahead(iter(range(1000)))
    assert next(items) == 0
    own = [t for t in threading.enumerate() if t not in before and "read-ahead" in t.name]
    assert len(own) == 1
    items.close()  # type: ignore[attr-defined]
    own[0].join(10)
    assert not own[0].is_alive()


def test_tensors_are_changed_and_the_rest_is_left() -> None:
    (first, second) = (map_tensors(batch, lambda v: v + 1) for batch in list(batches(2)))
    assert first.values.tolist() == [1] * 4
    assert first.boxes is None
    assert second.boxes is not None
    assert second.boxes.tolist() == [2.0] * 4
    assert second.number == 1


@pytest.mark.gpu
def test_a_gpu_gets_the_batches_of_the_cpu_while_it_computes() -> None:
    device = torch.device("cuda")
    busy = torch.randn(4096, 4096, device=device)
    found = []
    for batch in prefetch(batches(20, 1 << 20), device):
        assert batch.values.is_cuda
        for _ in range(5):  # the copies must not overtake, nor memory be given away too early
            busy = torch.nn.functional.normalize(busy @ busy)
        found.append((batch.number, batch.values.double().mean(), batch.values.double().std()))
    assert [number for number, _, _ in found] == list(range(20))
    assert [float(mean) for _, mean, _ in found] == list(range(20))
    assert all(float(spread) == 0 for _, _, spread in found)
