"""Passes that fit, against a memory that really runs out."""

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.memory import largest_batch
from vgse.images.devices import in_passes, padded_length


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
    ("room", "passes"), [(100, [100]), (99, [100, 50, 50]), (30, [100, 50, 25, 25, 25, 25])]
)
def test_a_pass_is_halved_until_it_fits_and_gives_the_same(room: int, passes: list[int]) -> None:
    memory, rows = Memory(room), torch.arange(100.0)
    found, most = in_passes(memory.forward, rows, 100)
    torch.testing.assert_close(found, 2 * rows)
    assert memory.tried == passes
    assert most == passes[-1]
    in_passes(memory.forward, rows, most)
    assert max(memory.tried[len(passes) :]) == most  # nothing is tried again


def test_where_no_row_fits_memory_has_run_out() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        in_passes(Memory(0).forward, torch.ones(5), 4)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(rows: object) -> Tensor:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        in_passes(broken, torch.ones(5), 4)
    with pytest.raises(RuntimeError, match="shapes differ"):
        largest_batch(broken, 8, 16)


def test_passes_have_few_lengths_and_little_padding() -> None:
    lengths = [padded_length(count) for count in range(1, 5000)]
    assert all(count <= padded < 1.125 * count + 8 for count, padded in enumerate(lengths, 1))
    assert len(set(lengths)) < 80
    assert padded_length(2304) == 2304  # nine patches of a whole unit


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
    found, most = in_passes(fill, torch.ones(4 * total), 4 * total)
    assert len(found) == 4 * total
    assert 0.2 * total < most <= total
