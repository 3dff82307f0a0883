"""What a loader process finds in itself."""

import os
import sys
from collections.abc import Iterator

import torch
from torch.utils.data import IterableDataset

HEAVY = ("ray", "skimage", "scipy", "sklearn", "matplotlib", "torchvision", "pandas", "faiss")


class Probe(IterableDataset[str]):
    """Names of the heavy modules of the process, and whether it holds a CUDA context."""

    def __iter__(self) -> Iterator[str]:
        found = [name for name in HEAVY if name in sys.modules]
        yield " ".join([*found, "cuda" if torch.cuda.is_initialized() else "", "end"])


class Forever(IterableDataset[str]):
    """The process, the one that forked it, and $ADDRESS; again and again."""

    def __iter__(self) -> Iterator[str]:
        while True:
            yield f"{os.getpid()} {os.getppid()} {os.environ['ADDRESS']}"
