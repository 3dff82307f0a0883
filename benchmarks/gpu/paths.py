"""What is timed: torchvision's own network, our step on it, and the work around it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import roi_align
from torchvision.transforms import functional

from benchmarks.gpu.data import CLASSES, STORED_SIDE, Source, epoch
from distributed.train.prefetch import prefetch
from vgse.clusters import Centroids, fit_centroids, normalise_rows
from vgse.config import LossConfig, ModelConfig, TrainingConfig
from vgse.images.backbones import build_backbone
from vgse.images.patches import cut_patches, grid_boxes
from vgse.training.model import ClusterHead, TrainingModel
from vgse.training.optimizer import make_optimizer
from vgse.training.step import StepData, run_step

WORD_SIZE = 300
# Dense bfloat16, without sparsity, as the makers' data sheets state it.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}


@dataclass(frozen=True)
class Setting:
    """One benchmark's sizes."""

    backbone: str
    side: int
    num_patches: int
    batch_size: int  # images
    device: torch.device
    precision: str

    @property
    def patches(self) -> int:
        """Patches in a batch."""
        return self.batch_size * self.num_patches


@dataclass
class Turn:
    """What one turn of a path gave."""

    seconds: float  # of the device; on a CPU the CPU time of this process, as cores are shared
    images: int
    stall: float = 0.0  # share of the wall time in which the host waited for data


Path = Callable[[], Turn]


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    wait(device)
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def peak_tflops(name: str) -> float | None:
    """Dense bfloat16 peak of a device by its name; None where it is not known."""
    if any(slower in name for slower in ("PCIe", "NVL", "MIG")):
        return None
    return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)


def flops_of_step(setting: Setting) -> tuple[float, float]:
    """Floating-point operations of θ for one patch: forward alone, forward and backward."""
    with torch.device("meta"):
        network = torchvision.models.get_model(setting.backbone).eval()
        pictures = torch.empty(1, 3, setting.side, setting.side)
        with FlopCounterMode(display=False) as forward:
            network(pictures)
        with FlopCounterMode(display=False) as both:
            network(pictures).sum().backward()
    return float(forward.get_total_flops()), float(both.get_total_flops())


def _autocast(setting: Setting) -> AbstractContextManager[object]:
    if setting.precision == "float32":
        return nullcontext()
    return torch.autocast(setting.device.type, torch.bfloat16)


def _timed(setting: Setting, work: Callable[[], object], repeats: int, images: int) -> Turn:
    began = clock(setting.device)
    for _ in range(repeats):
        work()
    return Turn(clock(setting.device) - began, images * repeats)


def plain_paths(setting: Setting, repeats: int) -> dict[str, Path]:
    """(a) torchvision's network alone on patches that lie on the device in its own format."""
    network: nn.Module = torchvision.models.get_model(setting.backbone).to(setting.device)
    network = network.to(memory_format=torch.channels_last)
    shape = (setting.patches, 3, setting.side, setting.side)
    pictures = torch.randn(shape, device=setting.device).to(memory_format=torch.channels_last)
    target = torch.randint(0, 1000, (setting.patches,), device=setting.device)

    def forward() -> Tensor:
        network.eval()
        with torch.inference_mode(), _autocast(setting):
            answer: Tensor = network(pictures)
        return answer

    def learn(training: bool) -> None:
        network.train(training)
        network.zero_grad()
        with _autocast(setting):
            loss = nn.functional.cross_entropy(network(pictures), target)
        loss.backward()

    count = setting.batch_size
    return {
        "plain forward": lambda: _timed(setting, forward, repeats, count),
        "plain": lambda: _timed(setting, lambda: learn(True), repeats, count),
        "plain fixed": lambda: _timed(setting, lambda: learn(False), repeats, count),
    }


class Ours:
    """Our model and optimiser, and a step's data that lies on the device."""

    def __init__(
        self, setting: Setting, *, compile_blocks: bool = False, folded: bool = True
    ) -> None:
        torch.manual_seed(0)
        self.setting = setting
        backbone = build_backbone(setting.backbone, "none").learn("all")
        if not folded:
            for module in backbone.modules():
                module.__dict__.pop("forward", None)  # what `fold_norms` put there
        if compile_blocks:
            backbone.compile_blocks()
        head = ClusterHead(ModelConfig(), backbone.num_features, CLASSES, WORD_SIZE)
        words = torch.randn(CLASSES, WORD_SIZE)
        model = TrainingModel(backbone, head, words, LossConfig())
        self.model = model.to(setting.device).train()
        self.optimizer = make_optimizer(self.model, TrainingConfig())

    def data(self, batch_size: int) -> StepData:
        """Pictures and boxes, or on a CPU patches, as the loader gives them."""
        setting, device = self.setting, self.setting.device
        boxes = torch.from_numpy(grid_boxes(setting.num_patches)).expand(batch_size, -1, 4)
        inputs = torch.randint(
            0, 256, (batch_size, 3, STORED_SIDE, STORED_SIDE), dtype=torch.uint8, device=device
        ).contiguous(memory_format=torch.channels_last)
        cut = device.type == "cpu"
        if cut:
            inputs = cut_patches(inputs, boxes, setting.side).to(torch.uint8)
        return StepData(
            inputs,
            torch.randint(0, CLASSES, (batch_size,), device=device),
            torch.arange(batch_size, device=device),
            torch.ones(batch_size, device=device),
            batch_size,
            None,
            None if cut else boxes.to(device),
            0 if cut else setting.side,
        )

    def step(self, data: StepData, micro_batches: int = 1) -> None:
        """One optimiser step, as distributed.train.trainer does it."""
        self.optimizer.zero_grad(set_to_none=True)
        run_step(
            self.model,
            self.model,
            data,
            micro_batches=micro_batches,
            precision=self.setting.precision,
        )
        self.optimizer.step()

    def synthetic(self, repeats: int, micro_batches: int = 1) -> Path:
        """(b) steps on data that lies on the device."""
        data = self.data(self.setting.batch_size)

        def turn() -> Turn:
            step = lambda: self.step(data, micro_batches)  # noqa: E731
            return _timed(self.setting, step, repeats, self.setting.batch_size)

        return turn

    def embedding(self, repeats: int) -> Path:
        """The pass without gradients, from pixels to assignments."""
        data = self.data(self.setting.batch_size)

        def embed() -> None:
            with torch.inference_mode(), _autocast(self.setting):
                features = self.model.features(data.patches(0, self.setting.batch_size))
                self.model.head(features)

        return lambda: _timed(self.setting, embed, repeats, self.setting.batch_size)

    def loaded(self, source: Source, repeats: int, lead: int = 3) -> Path:
        """(c) steps on what the loader reads from shards; the first `lead` steps of a turn,
        in which loader processes start, are not timed."""
        numbers = itertools.count()

        def turn() -> Turn:
            batches = prefetch(self._endless(source, numbers), self.setting.device)
            for _ in range(lead):
                self.step(next(batches))
            began, entered = clock(self.setting.device), time.perf_counter()
            waited, images = 0.0, 0
            for _ in range(repeats):
                asked = time.perf_counter()
                data = next(batches)
                waited += time.perf_counter() - asked
                self.step(data)
                images += len(data.labels)
            seconds = clock(self.setting.device) - began
            return Turn(seconds, images, waited / (time.perf_counter() - entered))

        return turn

    @staticmethod
    def _endless(source: Source, numbers: Iterator[int]) -> Iterator[StepData]:
        for number in numbers:
            yield from epoch(source, number)


def cutting_paths(setting: Setting, repeats: int) -> tuple[dict[str, Path], dict[str, float]]:
    """(d) ways to cut a batch's patches, and each one's largest distance in grey levels from
    cropping first and resizing then."""
    device, count = setting.device, setting.batch_size
    torch.manual_seed(0)
    pictures = torch.randint(
        0, 256, (count, 3, STORED_SIDE, STORED_SIDE), dtype=torch.uint8, device=device
    )
    boxes = torch.from_numpy(grid_boxes(setting.num_patches)).to(device).expand(count, -1, 4)
    edges = (boxes[0] * STORED_SIDE).round().int().tolist()
    side = [setting.side, setting.side]

    def crops() -> Tensor:
        return torch.stack(
            [
                functional.resized_crop(
                    pictures, y0, x0, y1 - y0, x1 - x0, side, antialias=False
                ).float()
                for x0, y0, x1, y1 in edges
            ],
            1,
        )

    def each_crop() -> Tensor:
        """As boxes that differ from picture to picture ask for."""
        return torch.stack(
            [
                torch.stack(
                    [
                        functional.resized_crop(
                            picture, y0, x0, y1 - y0, x1 - x0, side, antialias=False
                        ).float()
                        for x0, y0, x1, y1 in edges
                    ]
                )
                for picture in pictures
            ]
        )

    def aligned() -> Tensor:
        rows = list((boxes * STORED_SIDE).unbind(0))
        cut = roi_align(pictures.float(), rows, setting.side, sampling_ratio=1, aligned=True)
        return cut.view(count, setting.num_patches, 3, *side)

    ways: dict[str, Callable[[], Tensor]] = {
        "cut_patches": lambda: cut_patches(pictures, boxes, setting.side),
        "resized_crop": each_crop,
        "roi_align": aligned,
    }
    reference = crops()
    gaps = {name: float((way() - reference).abs().max()) for name, way in ways.items()}
    paths = {
        name: (lambda way=way: _timed(setting, way, repeats, count)) for name, way in ways.items()
    }
    return paths, gaps


def mixture(count: int, size: int, num_blobs: int) -> np.ndarray:
    """Unit vectors of a mixture whose directions differ in variance, float32 [count, size]."""
    rng = np.random.default_rng(0)
    scales = np.linspace(1.5, 0.2, size, dtype=np.float32)
    centres = rng.normal(size=(num_blobs, size)).astype(np.float32) * scales
    noise = rng.standard_normal((count, size), np.float32) * scales
    return normalise_rows(centres[rng.integers(num_blobs, size=count)] + noise)


def clusterings(
    features: np.ndarray, num_clusters: int, rounds: int
) -> dict[str, list[tuple[float, Centroids]]]:
    """(e) seconds and result of k-means by each way, in turns; the first turn is left out."""
    found: dict[str, list[tuple[float, Centroids]]] = {}
    for number in range(rounds + 1):
        for method in ("faiss", "torch"):
            began = time.perf_counter()
            # Where FAISS is missing, "faiss" falls back to PyTorch: its name is then said once.
            result = fit_centroids(features, num_clusters, seed=number, method=method)  # type: ignore[arg-type]
            if number:
                found.setdefault(result.device, []).append((time.perf_counter() - began, result))
    return found
