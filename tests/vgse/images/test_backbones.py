"""Backbones: features, what learns, and weights that are read without running anything."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

from vgse.images.backbones import Backbone, build_backbone, repeated_blocks


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return build_backbone("efficientnet-lite0")


@pytest.fixture(scope="module")
def resnet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pt"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


def pictures(count: int = 4, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def statistics(module: nn.Module) -> dict[str, Tensor]:
    named = module.state_dict().items()
    return {key: value.clone() for key, value in named if "running" in key or "num_batches" in key}


def moved(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    after = module.state_dict()
    return {key for key, value in before.items() if not torch.equal(value, after[key])}


def test_a_new_backbone_is_frozen_and_keeps_its_statistics_in_train_mode(lite0: Backbone) -> None:
    lite0.learn("none").train()
    before = statistics(lite0)
    lite0(pictures())
    assert lite0.training
    assert not any(p.requires_grad for p in lite0.parameters())
    assert not moved(before, lite0)
    lite0.eval()


def test_the_last_block_alone_learns_under_unmoved_statistics() -> None:
    backbone = build_backbone("efficientnet-lite0", "none").train()
    backbone.learn("last")
    before = statistics(backbone)
    backbone(pictures()).sum().backward()
    last = ("network.blocks.6.", "network.conv_head", "network.bn2")
    learning = {key for key, p in backbone.named_parameters() if p.requires_grad}
    assert learning == {key for key, _ in backbone.named_parameters() if key.startswith(last)}
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)
    assert not moved(before, backbone)


def test_training_and_evaluation_see_the_same_features() -> None:
    backbone = build_backbone("resnet18", "none").learn("all")
    before = statistics(backbone)
    with torch.no_grad():
        torch.testing.assert_close(backbone.train()(pictures()), backbone.eval()(pictures()))
    assert all(p.requires_grad for p in backbone.parameters())
    assert not moved(before, backbone)
    backbone.network.train()  # the control: statistics do move when the network is let
    backbone(pictures())
    assert moved(before, backbone) == set(before)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet-lite0", "mobilenet_v3_small"])
def test_weights_lie_in_channels_last_order_and_give_the_same_features(name: str) -> None:
    backbone = build_backbone(name, "none")
    plain = copy.deepcopy(backbone)
    for parameter in plain.parameters():
        parameter.data = parameter.data.contiguous()
    convolutions = [p for p in backbone.parameters() if p.dim() == 4]
    assert all(p.stride(1) == 1 for p in convolutions)  # also where a side is 1
    assert not all(p.stride(1) == 1 for p in plain.parameters() if p.dim() == 4)
    floats = (pictures().float() - plain.mean) / plain.std
    with torch.no_grad():
        torch.testing.assert_close(backbone(pictures()), plain.network(floats.contiguous()))


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("resnet50", "Bottleneck", 16),
        ("efficientnet-lite0", "InvertedResidual", 15),
        ("vit_b_16", "EncoderBlock", 12),
        ("convnext_tiny", "CNBlock", 18),
    ],
)
def test_repeated_blocks_are_the_units_of_a_network(name: str, kind: str, count: int) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(name) if "-" not in name else None
    found = repeated_blocks(network or build_backbone(name, "none").network)
    assert sum(type(block).__name__ == kind for block in found) == count
    inside = {id(part) for block in found for part in block.modules() if part is not block}
    assert not inside & {id(block) for block in found}


class Block(nn.Module):
    """A block of which a network has several."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures + torch.relu(self.norm(self.convolution(pictures)))


def of_blocks() -> Backbone:
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3, stride=2)
    network = nn.Sequential(
        stem, nn.Sequential(Block(), Block(), Block()), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return Backbone(network, 8, [network[1]]).learn("all").train()


@pytest.mark.gpu
def test_compiled_blocks_in_bfloat16_on_a_gpu_stay_near_the_plain_ones() -> None:
    torch._dynamo.reset()
    plain, compiled = of_blocks().cuda(), of_blocks().cuda()
    compiled.compile_blocks()
    for count in (3, 4, 5):
        some = pictures(count, 32).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            expected, found = plain(some), compiled(some)
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_have_the_features_and_gradients_of_the_plain_ones(backend: str) -> None:
    torch._dynamo.reset()
    plain, compiled = of_blocks(), of_blocks()
    names = list(plain.state_dict())
    assert compiled.compile_blocks(backend) == 3
    assert list(compiled.state_dict()) == names  # checkpoints fit either
    for count in (3, 4, 5):  # steps may differ in size
        graphs = counters["stats"]["unique_graphs"]
        plain.zero_grad()
        compiled.zero_grad()
        some = pictures(count, 16)
        expected, found = plain(some), compiled(some)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        expected.square().sum().backward()
        found.square().sum().backward()
        for (name, one), other in zip(compiled.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)
    assert counters["stats"]["unique_graphs"] == graphs  # the last size needed nothing new
    assert 1 <= graphs <= 2  # one for the first size, one for all others, for the three blocks


@pytest.mark.parametrize(
    ("name", "num_features"),
    [("resnet18", 512), ("mobilenet_v3_small", 1024), ("alexnet", 4096)],
)
def test_torchvision_models_lose_their_last_linear_layer(name: str, num_features: int) -> None:
    backbone = build_backbone(name, "none")
    with torch.no_grad():
        assert backbone(pictures()).shape == (4, num_features)
    assert backbone.num_features == num_features
    backbone.learn("last")
    learning = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert 0 < learning < sum(p.numel() for p in backbone.parameters())


def test_a_model_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"squeezenet1_1 has no linear classifier"):
        build_backbone("squeezenet1_1", "none")


def test_resnet_features_are_those_before_its_classifier(resnet_weights: Path) -> None:
    reference = torchvision.models.resnet18(weights=None)
    reference.load_state_dict(torch.load(resnet_weights, weights_only=True))
    reference.fc = nn.Identity()
    backbone = build_backbone("resnet18", str(resnet_weights))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (pictures().float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = reference.eval()(normalised)
        np.testing.assert_allclose(backbone(pictures()), expected, rtol=1e-3, atol=1e-4)
        other = build_backbone("resnet18", "none")(pictures())
    assert not np.allclose(other, expected, rtol=1e-3, atol=1e-4)


def test_weights_of_a_safetensors_file_are_the_same(resnet_weights: Path, tmp_path: Path) -> None:
    state = torch.load(resnet_weights, weights_only=True)
    save_file(state, tmp_path / "resnet18.safetensors")
    network = build_backbone("resnet18", str(tmp_path / "resnet18.safetensors")).network
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"cut\.safetensors is not a plain state dict"):
        build_backbone("resnet18", str(tmp_path / "cut.safetensors"))


def test_weights_under_the_key_state_dict_are_read_too(
    resnet_weights: Path, tmp_path: Path
) -> None:
    state = torch.load(resnet_weights, weights_only=True)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pt")
    backbone = build_backbone("resnet18", str(tmp_path / "checkpoint.pt"))
    assert torch.equal(backbone.network.state_dict()["conv1.weight"], state["conv1.weight"])


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.folder,)


def test_a_file_that_would_run_code_is_refused_without_running_it(tmp_path: Path) -> None:
    torch.save({"weight": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match=r"trap\.pt is not a plain state dict") as caught:
        build_backbone("resnet18", str(tmp_path / "trap.pt"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "trap.pt", weights_only=False)
    assert (tmp_path / "sprung").exists()  # it was armed


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": 3}, {"a": "b"}])
def test_a_file_without_a_state_dict_says_so(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is not a plain state dict"):
        build_backbone("resnet18", str(tmp_path / "other.pt"))


def test_weights_of_another_model_are_refused_in_one_line(resnet_weights: Path) -> None:
    for name in ("resnet50", "efficientnet-lite0", "mobilenet_v3_small"):
        with pytest.raises(ValueError, match=r"resnet18\.pt does not fit backbone\.name") as caught:
            build_backbone(name, str(resnet_weights))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["efficientnet-lite0", "mobilenet_v3_small"])
def test_random_weights_are_the_same_in_every_process(name: str) -> None:
    before = torch.random.get_rng_state()
    one, other = (build_backbone(name, "none").state_dict() for _ in range(2))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_unknown_names_and_missing_files_say_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet1'; use efficientnet-lite0, a"):
        build_backbone("resnet1", "none")
    with pytest.raises(ValueError, match=r"no file nowhere\.pt; use 'default'"):
        build_backbone("resnet18", "nowhere.pt")
    with pytest.raises(ValueError, match=r"no file .*, a folder; use 'default'"):
        build_backbone("resnet18", str(tmp_path))


def test_a_checkpoint_holds_every_weight_once_and_no_classifier(lite0: Backbone) -> None:
    keys = list(lite0.state_dict())
    assert not [key for key in keys if "_fc" in key or "last_block" in key]
    assert len(keys) == len({value.data_ptr() for value in lite0.state_dict().values()})
