"""Where in the data a run stands, so that it goes on there with any number of workers."""

from dataclasses import dataclass, replace
from typing import Any

from distributed.batches import Dataset
from shards import cursor as cursors
from shards.cursor import Cursor
from shards.plan import Plan, continue_at, remaining_after, split_ranges


@dataclass(frozen=True)
class Position:
    """A place within an epoch: the plan that was followed, and how far.

    The plan is kept rather than the ranges left of it: the same number of workers then goes on
    with the very batches that an uninterrupted run would have seen.
    """

    cursor: Cursor  # what the plan deals out
    world_size: int
    loader_workers: int
    plan_step: int  # steps of the plan that are done
    step: int  # optimiser steps of the run

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON."""
        return {
            "cursor": self.cursor.to_dict(),
            "world_size": self.world_size,
            "loader_workers": self.loader_workers,
            "plan_step": self.plan_step,
            "step": self.step,
        }


def epoch_start(dataset: Dataset, epoch: int, step: int, seed: int, world_size: int) -> Position:
    """The beginning of an epoch."""
    cursor = cursors.start_of(dataset.manifest, dataset.selection, seed=seed, epoch=epoch)
    return Position(cursor, world_size, dataset.loader_workers, 0, step)


def restore_position(state: dict[str, Any], dataset: Dataset, world_size: int) -> Position:
    """The position of a checkpoint, dealt out anew if the number of workers has changed.

    Raises:
        ValueError: a checkpoint of other data.
    """
    cursor = cursors.restore(state["cursor"], dataset.manifest, dataset.selection)
    saved = Position(
        cursor, state["world_size"], state["loader_workers"], state["plan_step"], state["step"]
    )
    if (saved.world_size, saved.loader_workers) == (world_size, dataset.loader_workers):
        return saved
    left = remaining_after(_whole_plan(saved, dataset), saved.plan_step)
    return Position(
        replace(cursor, remaining=left), world_size, dataset.loader_workers, 0, saved.step
    )


def plan_of(position: Position, dataset: Dataset) -> Plan:
    """What is left to do of the position's epoch."""
    return continue_at(_whole_plan(position, dataset), position.plan_step)


def _whole_plan(position: Position, dataset: Dataset) -> Plan:
    return split_ranges(
        position.cursor.remaining,
        position.world_size,
        position.loader_workers,
        dataset.batch_size,
    )
