"""Passes that fit, against a memory that really runs out."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.memory import largest_batch
from vgse.images.devices import Passes


class Memory:
    """Room for so many rows."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []

    def step(self, size: int) -> None:
        self.tried.append(size)
        if size > self.room:
            raise torch.OutOfMemoryError(f"{size} rows do not fit")

    def forward(self, rows: Tensor) -> Tensor:
        self.step(len(rows))
        return 2 * rows


@pytest.mark.parametrize(
    ("room", "tried"), [(100, [100]), (99, [100, 50, 50]), (30, [100, 50, 25, 25, 25, 25])]
)
def test_a_pass_is_halved_until_it_fits_and_gives_the_same(room: int, tried: list[int]) -> None:
    memory, rows = Memory(room), torch.arange(100.0)
    passes = Passes(1000)
    torch.testing.assert_close(passes.run(memory.forward, rows), 2 * rows)
    assert memory.tried == tried
    torch.testing.assert_close(passes.run(memory.forward, rows), 2 * rows)
    assert max(memory.tried[len(tried) :]) == tried[-1]  # nothing is tried again


def test_where_no_row_fits_memory_has_run_out() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Passes(4).run(Memory(0).forward, torch.ones(5))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(rows: object) -> Tensor:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        Passes(4).run(broken, torch.ones(5))
    with pytest.raises(RuntimeError, match="shapes differ"):
        largest_batch(broken, 8, 16)


def test_passes_have_few_lengths_and_little_padding() -> None:
    memory, passes = Memory(10_000), Passes(8192)
    for count in (2304, 2304, 2200, 1153, 900, 500, 700, 60, 55, 61):
        rows = torch.arange(float(count))
        torch.testing.assert_close(passes.run(memory.forward, rows), 2 * rows)
    assert memory.tried == [2304, 2304, 2304, 2304, 900, 900, 900, 60, 60, 61]


def test_threads_take_turns() -> None:
    passes, inside, most = Passes(10), [], []

    def forward(rows: Tensor) -> Tensor:
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()
        return rows

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: passes.run(forward, torch.ones(10)), range(12)))
    assert most == [1] * 12


@pytest.mark.parametrize("room", [0, 1, 7, 8, 9, 100, 127, 128, 129, 999, 1000, 5000])
def test_the_largest_batch_is_found_to_the_row(room: int) -> None:
    memory = Memory(room)
    assert largest_batch(memory.step, 8, 1000) == min(room, 1000)
    assert len(memory.tried) < 25


@pytest.mark.gpu
def test_the_memory_of_a_gpu_runs_out_and_is_there_again() -> None:
    def fill(rows: Tensor) -> Tensor:  # a GiB each
        torch.empty(len(rows) << 30, dtype=torch.uint8, device="cuda")
        return rows

    total = torch.cuda.get_device_properties(0).total_memory >> 30
    passes = Passes(4 * total)
    assert len(passes.run(fill, torch.ones(4 * total))) == 4 * total
    assert 0.2 * total < passes.most <= total
    torch.cuda.empty_cache()  # later tests need memory that is not PyTorch's
