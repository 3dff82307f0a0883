"""Batch norms with fixed statistics, computed within the convolutions before them."""

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from vgse.images.backbones import build_backbone
from vgse.images.norms import fold_norms


def with_statistics(network: nn.Module) -> nn.Module:
    """The network as after training: norms that change something."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 1.5, generator=generator)
            for values in (module.bias.data, module.running_mean):
                values.uniform_(-0.5, 0.5, generator=generator)
    return network.eval()


def pictures(count: int = 3, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "tf_efficientnet_lite0":
        import timm

        return timm.create_model(name, num_classes=0)
    return torchvision.models.get_model(name, weights=None)


@pytest.mark.parametrize(
    ("name", "norms", "folded"),
    [
        ("resnet18", 20, 20),
        ("tf_efficientnet_lite0", 49, 49),  # norms with an activation, and TensorFlow's padding
        ("vgg11_bn", 8, 8),  # convolutions with a bias
        ("densenet121", 121, 59),  # the other norms take joined outputs
        ("convnext_tiny", 0, 0),
    ],
)
def test_a_folded_network_has_the_features_of_the_plain_one(
    name: str, norms: int, folded: int
) -> None:
    plain = with_statistics(network_of(name))
    network = copy.deepcopy(plain)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == norms
    assert fold_norms(network) == folded
    assert list(network.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(network(pictures()), plain(pictures()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_a_folded_network_learns_as_the_plain_one(name: str) -> None:
    plain = with_statistics(network_of(name))
    network = copy.deepcopy(plain)
    assert fold_norms(network)
    # In float32 values at the edge of a ReLU6 may fall on either side, and gradients jump.
    some = pictures().double()
    plain.double()
    network.double()
    with torch.no_grad():
        before = plain(some)
    for each in (plain, network):
        each(some).square().mean().backward()
    for (of, one), other in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, of
        assert (one.grad - other.grad).norm() <= 1e-9 * other.grad.norm(), of
        for values in (one, other):  # to the same weights, with or without a mistake
            values.data -= 0.02 * other.grad * values.norm() / other.grad.norm().clamp_min(1e-12)
    with torch.no_grad():
        after, found = plain(some), network(some)
    assert (found - after).norm() < 1e-9 * after.norm()
    assert (after - before).norm() > 0.03 * before.norm()  # the weights are those of now


def test_norms_that_learn_statistics_are_not_folded_meanwhile() -> None:
    plain = with_statistics(network_of("resnet18"))
    network = copy.deepcopy(plain)
    fold_norms(network)
    for each in (plain.train(), network.train()):
        each(pictures())
    for (name, one), other in zip(network.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    with torch.no_grad():  # and count from then on
        torch.testing.assert_close(
            network.eval()(pictures()), plain.eval()(pictures()), rtol=1e-3, atol=1e-4
        )


def test_a_copy_of_a_folded_network_has_weights_of_its_own() -> None:
    network = with_statistics(network_of("resnet18"))
    fold_norms(network)
    expected = network(pictures())
    other = copy.deepcopy(network)
    for values in other.parameters():
        values.data.zero_()
    assert torch.equal(network(pictures()), expected)
    assert not torch.equal(other(pictures()), expected)


class Shared(nn.Module):
    """Another layer takes the output of the convolution, too."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, pictures: Tensor) -> Tensor:
        found = self.convolution(pictures)
        return (found + self.norm(found)).mean((2, 3))


def test_a_norm_whose_input_others_need_is_not_folded() -> None:
    network = Shared().eval()  # a new norm changes nothing, so that folding it would not be seen
    assert fold_norms(network) == 0
    alone = nn.Sequential(network.convolution, network.norm, nn.Flatten())
    assert fold_norms(alone) == 1  # the control


def test_backbones_are_built_folded() -> None:
    backbone = build_backbone("resnet18", "none")
    norm = backbone.network.bn1
    assert torch.equal(norm(pictures()), pictures())  # the convolution before it does its work
