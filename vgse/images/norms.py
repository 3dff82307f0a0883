"""Batch norms with fixed statistics, computed within the convolutions before them.

With statistics that stay, norm(conv(x)) is one convolution with the weight w s and the bias
b - m s, where s = g / sqrt(v + eps). Its gradients are the same, and neither pass touches the
pictures for the norm: on a GPU that is nearly half of a step's time and of its memory. Without
gradients a GPU is faster with its own norm.
"""

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_SIDE = 96  # of the picture by which convolutions before norms are found
_TOLERANCE = 1e-3


def fold_norms(network: nn.Module) -> int:
    """Compute batch norms as part of the convolutions whose outputs they take, for as long as they
    do not learn statistics. Weights keep their names and places. Returns how many are folded: none
    where the network gives other features then, as when another layer takes the output too."""
    pairs = _pairs(network)
    if not pairs:
        return 0
    # Norms of a new network change nothing, which would hide a mistake.
    trial = copy.deepcopy(network)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in trial.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                for values in (module.weight, module.running_var):
                    if values is not None:
                        values.uniform_(0.5, 1.5)
                for values in (module.bias, module.running_mean):
                    if values is not None:
                        values.uniform_(-0.5, 0.5)
        picture = torch.randn(1, 3, _SIDE, _SIDE)
        expected = trial.eval()(picture)
        _fold(trial, pairs)
        found = trial(picture)
    if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE * expected.abs().max()):
        return 0
    _fold(network, pairs)
    return len(pairs)


def _pairs(network: nn.Module) -> dict[str, str]:
    """Name of a convolution -> name of the batch norm that takes its output."""
    names = {module: name for name, module in network.named_modules()}
    norms = [module for module in names if isinstance(module, nn.BatchNorm2d)]
    convolutions = [module for module in names if _is_plain(module)]
    made: dict[int, tuple[str, Tensor]] = {}  # the tensor with it, or its id could come again
    found: dict[str, str] = {}

    def after(module: nn.Module, _: Any, output: Tensor) -> None:
        made[id(output)] = names[module], output

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        name, _ = made.get(id(inputs[0]), ("", None))
        if name and module.affine and module.track_running_stats:
            found[name] = names[module]

    if not norms or not convolutions or any(norm.training for norm in norms):
        return {}
    hooks = [module.register_forward_hook(after) for module in convolutions]
    hooks += [module.register_forward_pre_hook(before) for module in norms]
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, _SIDE, _SIDE))
    except RuntimeError:  # it takes another size
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    return found if len(set(found.values())) == len(found) else {}


def _is_plain(module: nn.Module) -> bool:
    kind = type(module)
    is_timm = (kind.__module__, kind.__name__) == ("timm.layers.conv2d_same", "Conv2dSame")
    return kind is nn.Conv2d or is_timm


def _fold(network: nn.Module, pairs: dict[str, str]) -> None:
    """Methods of modules, as copies of a network then use their own weights."""
    for of_convolution, of_norm in pairs.items():
        convolution, norm = network.get_submodule(of_convolution), network.get_submodule(of_norm)
        object.__setattr__(convolution, "folded_norm", (norm,))  # no submodule of it
        object.__setattr__(convolution, "forward", MethodType(_convolve, convolution))
        object.__setattr__(norm, "forward", MethodType(_after_convolution, norm))


def _is_folded(norm: nn.Module, pictures: Tensor) -> bool:
    return not norm.training and (torch.is_grad_enabled() or not pictures.is_cuda)


def _convolve(self: Any, pictures: Tensor) -> Tensor:
    (norm,) = self.folded_norm
    if not _is_folded(norm, pictures):
        return type(self).forward(self, pictures)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # [D_out]
    shift = norm.running_mean if self.bias is None else norm.running_mean - self.bias
    weight, bias = self.weight * scale.view(-1, 1, 1, 1), norm.bias - shift * scale
    if type(self) is nn.Conv2d:
        return self._conv_forward(pictures, weight, bias)
    from timm.layers.conv2d_same import conv2d_same

    shape = self.stride, self.padding, self.dilation, self.groups
    return conv2d_same(pictures, weight, bias, *shape)


def _after_convolution(self: Any, pictures: Tensor) -> Tensor:
    if not _is_folded(self, pictures):
        return type(self).forward(self, pictures)
    # timm's norms hold the activation, too.
    return self.act(self.drop(pictures)) if hasattr(self, "drop") else pictures
