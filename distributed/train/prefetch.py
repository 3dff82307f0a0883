"""Batches on the device before the step asks for them."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from shards.read_ahead import read_ahead

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Batch = TypeVar("Batch", bound="DataclassInstance")
Item = TypeVar("Item")


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches (dataclasses with tensors among their fields) in order, on `device`.

    On a GPU the next batch is loaded in a thread and copied from page-locked memory on a stream
    of its own while the step before it runs; neither the copy nor the step waits for the host.
    """
    if device.type == "cpu":
        yield from batches
        return
    if device.type != "cuda":
        yield from (map_tensors(batch, lambda v: v.to(device)) for batch in batches)
        return
    stream = _side_stream(device)

    def send(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            return map_tensors(batch, lambda v: _copied(v, device)), stream.record_event()

    for batch, arrived in one_ahead(map(send, batches)):
        torch.cuda.current_stream(device).wait_event(arrived)
        yield map_tensors(batch, lambda v: _in_use(v, device))


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each taken from `items` in a thread while the one before it is used."""
    source, end = iter(items), object()
    for _, item in read_ahead(repeat(None), lambda _: next(source, end), 1):
        if item is end:
            return
        yield item  # type: ignore[misc]


def map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor among its fields changed."""
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **{name: change(value) for name, value in tensors.items()})


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; on a GPU its copy overlaps with what other threads compute."""
    if device.type != "cuda":
        return values.to(device)
    stream = _side_stream(device)
    with torch.cuda.device(device), torch.cuda.stream(stream):
        moved = _copied(values, device)
        arrived = stream.record_event()
    torch.cuda.current_stream(device).wait_event(arrived)
    return _in_use(moved, device)


@functools.lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _copied(values: Tensor, device: torch.device) -> Tensor:
    """From page-locked memory, or the host would wait for the copy."""
    return values.pin_memory().to(device, non_blocking=True)


def _in_use(values: Tensor, device: torch.device) -> Tensor:
    """Made on the side stream: its memory must not be given away before the step has used it."""
    values.record_stream(torch.cuda.current_stream(device))
    return values
