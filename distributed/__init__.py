"""One run on a Ray cluster."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgse.config import RunConfig

__all__ = ["train_run"]

# Ray reads these while it is imported. A Ray that is started here listens on this machine's
# loopback alone, as on systems where Ray knows no clusters; 1 asks for the opposite.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# Of a dead worker or node the display has a line.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX", "^A worker died or was killed|marked dead because"
)


def train_run(config: "RunConfig", run_id: str, *, resume: bool = False) -> Path:
    """Everything from shards to the report that is not done yet; returns the run folder.

    Joins the Ray of this process where it has been initialised, else what `config.cluster` names,
    else a local one. The same `run_id` again goes on with a run that was interrupted; of a
    finished one `resume` redoes what follows the embedding.
    """
    from distributed.run import train

    return train(config, run_id, resume=resume)
