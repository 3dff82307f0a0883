"""timm's networks as backbones, offline, and EfficientNet-Lite0 among them."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from vgse.errors import UserError
from vgse.images.backbones import Backbone, build_backbone

TRANSFORMER = "timm/test_vit"  # patches of 16 pixels


def pictures(side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=generator)


def features(backbone: Backbone, side: int = 64) -> Tensor:
    with torch.no_grad():
        return backbone(pictures(side))


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return build_backbone("efficientnet-lite0")


def test_lite0_gives_the_features_that_its_own_package_gave(lite0: Backbone) -> None:
    found = features(lite0)
    assert found.shape == (4, lite0.num_features) == (4, 1280)
    expected = [1.0841645, 1.6690763, 0.4891204, 0.0, 0.0]
    np.testing.assert_allclose(found[0, [0, 100, 321, 777, 1279]], expected, atol=1e-4)
    norms = [17.600889, 18.291277, 20.180864, 38.482124]
    np.testing.assert_allclose(found.norm(dim=1), norms, rtol=1e-4)


def test_lite0_takes_weights_in_the_names_of_timm_too(lite0: Backbone, tmp_path: Path) -> None:
    state = {key: value.contiguous() for key, value in lite0.network.state_dict().items()}
    save_file(state, tmp_path / "lite0.safetensors")
    again = build_backbone("efficientnet-lite0", str(tmp_path / "lite0.safetensors"))
    torch.testing.assert_close(features(again), features(lite0))


def test_a_transformer_takes_every_multiple_of_its_patch_and_no_other_side() -> None:
    backbone = build_backbone(TRANSFORMER, "none")
    assert features(backbone, 48).shape == features(backbone, 160).shape == (4, 64)
    with pytest.raises(AssertionError, match="divisible"):
        features(backbone, 50)


def test_pictures_are_normalised_as_the_model_was_trained() -> None:
    means = [build_backbone(n, "none").mean for n in (TRANSFORMER, "timm/test_efficientnet")]
    assert means[0].flatten().tolist() == pytest.approx([127.5] * 3)
    assert means[1].flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


@pytest.mark.parametrize("classes", [0, 1000])
def test_weights_of_a_file_with_or_without_classifier_are_taken(
    classes: int, tmp_path: Path
) -> None:
    network = timm.create_model("test_vit", num_classes=classes)
    save_file(dict(network.state_dict()), tmp_path / "vit.safetensors")
    backbone = build_backbone(TRANSFORMER, str(tmp_path / "vit.safetensors"))
    norm = backbone.network.blocks[0].norm1  # type: ignore[union-attr, index]
    torch.testing.assert_close(norm.weight, network.blocks[0].norm1.weight)
    grid = backbone.network.patch_embed.proj.weight  # type: ignore[union-attr]
    torch.testing.assert_close(grid, network.patch_embed.proj.weight)


def test_weights_of_another_model_are_refused_in_one_line(tmp_path: Path) -> None:
    save_file(dict(timm.create_model("test_vit2").state_dict()), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"does not fit backbone\.name") as caught:
        build_backbone(TRANSFORMER, str(tmp_path / "other.safetensors"))
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_downloaded_name_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"test_vit.* set backbone\.weights to a file"):
        build_backbone("timm/test_vit.r160_in1k")


def test_unknown_models_and_tags_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="timm has no model 'vit_huge_nothing'"):
        build_backbone("timm/vit_huge_nothing", "none")
    with pytest.raises(UserError, match="Invalid pretrained tag"):
        build_backbone("timm/test_vit.nothing", "none")


@pytest.mark.parametrize(
    ("name", "last"),
    [
        (TRANSFORMER, ("blocks.5.", "norm.")),
        ("timm/test_efficientnet", ("blocks.4.", "conv_head.", "bn2.")),
        ("timm/test_convnext", ("stages.3.", "head.")),
    ],
)
def test_the_last_block_learns_with_the_layers_after_it(name: str, last: tuple[str, ...]) -> None:
    backbone = build_backbone(name, "none").learn("last")
    named = dict(backbone.network.named_parameters())
    learning = {key for key, parameter in named.items() if parameter.requires_grad}
    assert learning == {key for key in named if key.startswith(last)}
    assert {key.partition(".")[0] for key in learning} == {part.partition(".")[0] for part in last}
    backbone.train()(pictures()).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)
