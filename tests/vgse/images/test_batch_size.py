"""Finding a batch size by trying, against a memory that really runs out."""

import pytest
import torch

from benchmarks.gpu.memory import largest_batch
from vgse.images.backbones import build_backbone
from vgse.images.devices import find_batch_size, pictures_a_pass


class Memory:
    """Room for so many items; a step takes a fixed time and one for each item."""

    def __init__(self, room: int, fixed: float = 1.0, each: float = 0.01) -> None:
        self.room, self.fixed, self.each = room, fixed, each
        self.now = 0.0
        self.tried: list[int] = []

    def step(self, size: int) -> None:
        self.tried.append(size)
        if size > self.room:
            raise torch.OutOfMemoryError(f"{size} items do not fit")
        self.now += self.fixed + self.each * size

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize(("room", "expected"), [(64, 64), (100, 64), (511, 256), (10**9, 1000)])
def test_the_batch_doubles_until_memory_or_the_limit_ends(room: int, expected: int) -> None:
    memory = Memory(room, each=0.0)  # twice the batch is always twice as fast
    assert find_batch_size(memory.step, 8, 1000, clock=memory.clock) == expected
    assert max(memory.tried) <= 1000


def test_a_batch_that_gains_nothing_is_not_taken() -> None:
    memory = Memory(10**9, fixed=1.0, each=0.01)
    found = find_batch_size(memory.step, 8, 10**6, clock=memory.clock)
    assert found == 1024  # 2048 would be 4.6% faster, 1024 is 9%
    assert max(memory.tried) == 2048
    slow = Memory(10**9, fixed=0.0)
    assert find_batch_size(slow.step, 8, 10**6, clock=slow.clock) == 8


def test_every_size_is_warmed_up_before_it_is_timed() -> None:
    class Cold(Memory):
        def step(self, size: int) -> None:
            self.now += 10.0 * size * (size not in self.tried)  # all sizes equally slow at first
            super().step(size)

    memory = Cold(100, each=0.0)
    assert find_batch_size(memory.step, 8, 1000, clock=memory.clock) == 64


def test_a_start_above_the_limit_is_brought_down_and_one_that_does_not_fit_is_told() -> None:
    memory = Memory(100)
    assert find_batch_size(memory.step, 64, 16, clock=memory.clock) == 16
    with pytest.raises(torch.OutOfMemoryError):
        find_batch_size(Memory(7).step, 8, 16)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(size: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        find_batch_size(broken, 8, 16)
    with pytest.raises(RuntimeError, match="shapes differ"):
        largest_batch(broken, 8, 16)


@pytest.mark.parametrize("room", [0, 1, 7, 8, 9, 100, 127, 128, 129, 999, 1000, 5000])
def test_the_largest_batch_is_found_to_the_item(room: int) -> None:
    memory = Memory(room)
    assert largest_batch(memory.step, 8, 1000) == min(room, 1000)
    assert len(memory.tried) < 25


@pytest.mark.gpu
def test_a_gpu_finds_a_batch_and_keeps_room() -> None:
    backbone = build_backbone("resnet18", "none").cuda()
    found = pictures_a_pass(backbone, 64, "bfloat16", "cuda")
    assert 128 <= found <= 4096

    def fill(size: int) -> None:  # size GiB
        torch.empty(size << 30, dtype=torch.uint8, device="cuda")

    total = torch.cuda.get_device_properties(0).total_memory >> 30
    assert 0.5 * total < largest_batch(fill, 1, 4096) <= total
