"""Pieces of an epoch's order that one pass through a shard serves."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pass:
    """Samples start to stop - 1 of shard number `shard`, read once, forward.

    `wanted` are the samples [n] of each piece, in the order of the epoch; all of a piece
    stand before all of the next.
    """

    shard: int
    start: int
    stop: int
    wanted: list[NDArray[np.int64]]


def plan_passes(pieces: Iterable[tuple[int, NDArray[np.int64]]], stride: int) -> Iterator[Pass]:
    """Passes for pieces (shard, samples), in order.

    A piece joins the pass before it where that saves opening the shard again: if it stands
    further on in the same shard, with no whole run of `stride` samples unread between them.
    """
    now: Pass | None = None
    for shard, wanted in pieces:
        start, stop = int(wanted.min()), int(wanted.max()) + 1
        joins = (
            now is not None
            and now.shard == shard
            and now.stop <= start < (-(-now.stop // stride) + 1) * stride
        )
        if now is not None and joins:
            now = Pass(shard, now.start, stop, [*now.wanted, wanted])
            continue
        if now is not None:
            yield now
        now = Pass(shard, start, stop, [wanted])
    if now is not None:
        yield now
