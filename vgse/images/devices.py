"""What suits a device: its number format, its memory, and passes that fit into it."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vgse.errors import UserError


def cpu_precision(wanted: str) -> str:
    """The number format of θ; "auto" becomes "bfloat16" where this CPU multiplies in it."""
    if wanted != "auto":
        return wanted
    # torch 2.13 and newer
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if fast else "float32"


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Mixed precision for bfloat16, nothing for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.partition(":")[0], torch.bfloat16)


@contextmanager
def memory_errors_in_one_line(remedy: str) -> Iterator[None]:
    """A GPU that runs out of memory is the user's to mend, by `remedy`: starting again would only
    repeat it."""
    try:
        yield
    except RuntimeError as error:  # FAISS has no kind of its own
        text = " ".join(str(error).split())
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in text.lower():
            raise
        raise UserError(f"out of GPU memory: {remedy} ({text[:160]})") from error


def context_is_broken() -> bool:
    """Whether an error of CUDA in this process, such as a failed assertion or a GPU that fell off
    its bus, makes every later call fail as well."""
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
    return False


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed for the next tensor, and give it back to the system at the end."""
    # glibc returns large blocks at once: a quarter of a feature pass would wait for fresh pages.
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        for setting in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            library.mallopt(setting, 1 << 30)
    try:
        yield
    finally:
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)


@dataclass
class Passes:
    """Forward passes of one network over inputs of one shape on a GPU, one at a time whatever the
    threads, halved where memory runs out, and of few lengths: cuDNN plans and compiles kernels for
    each length that it meets, which takes 1.5 s for EfficientNet-Lite0 and its pass 20 ms."""

    most: int  # rows a pass
    lengths: set[int] = field(default_factory=set)  # that were used
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """What `forward` gives for `inputs` [n, ...]; torch.OutOfMemoryError where not even one
        row fits."""
        parts: list[Tensor] = []
        start = 0
        with self.lock:
            while start < len(inputs):
                part = inputs[start : start + self.most]
                try:
                    parts.append(forward(self._padded(part))[: len(part)])
                    start += len(part)
                    continue
                except torch.OutOfMemoryError:
                    if self.most == 1:
                        raise
                # Outside of the handler, whose traceback keeps the pass's tensors alive.
                self.most = -(-min(self.most, len(part)) // 2)
                self.lengths.clear()
                torch.cuda.empty_cache()
        return torch.cat(parts)

    def _padded(self, inputs: Tensor) -> Tensor:
        """The rows and blank ones, up to the next length that was used, or is at most twice as
        long."""
        count = len(inputs)
        used = [length for length in self.lengths if count <= length <= 2 * count]
        length = min(used, default=count)
        self.lengths.add(length)
        if length == count:
            return inputs
        return torch.cat([inputs, inputs.new_zeros(length - count, *inputs.shape[1:])])
