"""Networks: their sizes are those of the literature, and their features come out by name."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.models import Shape, build, feature_names, features_of

COLOUR, GREY = (3, 32, 32), (1, 28, 28)
NORMS = ["batch", "instance", "group", "layer", "none"]


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("net", "shape", "number"),
    [
        # The dataset-distillation papers' ConvNet-3, three channels of 32 x 32 and one of 28 x 28 (arXiv 2006.05929).
        (Net(arch="convnet"), COLOUR, 320_010),
        (Net(arch="convnet"), GREY, 317_706),
        # arXiv 1512.03385 table 6 says 0.27 M and 0.85 M with shortcuts without parameters (269,722 and 853,018); a 1x1
        # convolution with batch norm in both (16*32 + 64 and 32*64 + 128) makes 2,752 more.
        (Net(arch="resnet", depth=20), COLOUR, 269_722 + 2_752),
        (Net(arch="resnet", depth=56), COLOUR, 853_018 + 2_752),
        # ResNet-18 for images of 32 x 32, as counted for resnet.py of github.com/kuangliu/pytorch-cifar.
        (Net(arch="resnet18"), COLOUR, 11_173_962),
        # Convolutions of configuration A with biases (arXiv 1409.1556 table 1: 9,220,480), batch norm, 512 x 10 + 10.
        (Net(arch="vgg"), COLOUR, 9_220_480 + 2 * 2_752 + 5_130),
        (Net(arch="mlp", width=128, depth=2), GREY, 784 * 128 + 128 + 128 * 128 + 128 + 1290),
    ],
)
def test_a_network_has_as_many_parameters_as_in_the_literature(net: Net, shape: Shape, number: int):
    assert num_parameters(build(net, shape, 10, 0)) == number


def test_the_convolutional_network_halves_its_maps_three_times_from_32():
    for shape in (COLOUR, GREY):
        net = build(Net(arch="convnet", width=8), shape, 10, 0)
        with features_of(net, feature_names(net)) as found:
            net(torch.zeros(2, *shape))
        assert [tuple(feature.shape) for feature in found.values()] == [(2, 8, 16, 16), (2, 8, 8, 8), (2, 8, 4, 4)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "net",
    [
        Net(arch="convnet", width=20),
        Net(arch="resnet", depth=8),
        Net(arch="resnet18", width=4),
        Net(arch="vgg", width=20),
    ],
)
def test_every_norm_gives_finite_logits_and_gradients_everywhere(net: Net, norm: str):
    built = build(net.model_copy(update={"norm": norm}), COLOUR, 5, 0)
    logits = built(torch.randn(4, *COLOUR))
    logits.sum().backward()
    assert logits.shape == (4, 5)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in built.parameters())


@pytest.mark.parametrize(("norm", "same"), [("batch", False), ("instance", True), ("group", True), ("layer", True)])
def test_only_batch_norm_lets_the_images_of_a_batch_touch_each_other(norm: str, same: bool):
    built = build(Net(arch="convnet", width=32, norm=norm), (3, 16, 16), 5, 0).train()
    images = torch.randn(6, 3, 16, 16)
    assert torch.allclose(built(images)[:2], built(images[:2]), atol=1e-5) is same


def test_instance_norm_is_the_definition_for_each_image_and_channel():
    net = build(Net(arch="convnet", width=4, depth=1, norm="instance"), (3, 8, 8), 5, 0)
    conv, norm = net.blocks[0][0], net.blocks[0][1]
    maps = conv(torch.randn(3, 3, 8, 8))
    mean, variance = maps.mean((2, 3), keepdim=True), maps.var((2, 3), unbiased=False, keepdim=True)
    assert torch.allclose(norm(maps), (maps - mean) / (variance + 1e-5).sqrt(), atol=1e-5)


def test_a_residual_block_adds_its_input():
    net = build(Net(arch="resnet", depth=8), COLOUR, 10, 0).eval()
    block = net.blocks[0][0]
    with torch.no_grad():
        block.conv2.weight.zero_()
        images = torch.rand(2, 16, 8, 8)
        assert torch.allclose(block(images), images)


def test_resnet18_has_four_groups_each_with_maps_half_as_large():
    net = build(Net(arch="resnet18", width=4), COLOUR, 10, 0)
    with features_of(net, feature_names(net)) as found:
        net(torch.zeros(2, *COLOUR))
    sizes = [(2, 4, 32, 32), (2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 4, 4)]
    assert [tuple(feature.shape) for feature in found.values()] == sizes


def test_features_are_what_the_blocks_give_and_hooks_are_gone_afterwards():
    net = build(Net(arch="convnet", width=8), COLOUR, 10, 0)
    images = torch.randn(2, *COLOUR)
    with features_of(net, feature_names(net)) as found:
        logits = net(images)
    expected = images
    for number, block in enumerate(net.blocks):
        expected = block(expected)
        assert torch.equal(found[f"blocks.{number}"], expected)
    assert torch.equal(net.classifier(found["blocks.2"].flatten(1)), logits)
    before = dict(found)
    net(images + 1)
    assert all(found[name] is before[name] for name in before)
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_are_gone_after_an_error_too():
    net = build(Net(arch="convnet", width=8), COLOUR, 10, 0)
    with pytest.raises(RuntimeError), features_of(net, ["blocks.0"]):
        net(torch.zeros(1, 5, 4, 4))
    assert not any(module._forward_hooks for module in net.modules())


def test_a_module_that_is_not_there_is_told_with_those_that_are():
    net = build(Net(arch="convnet", width=8), COLOUR, 10, 0)
    with pytest.raises(ConfigError, match=r"no module '층'.*blocks.0, blocks.1, blocks.2"), features_of(net, ["층"]):
        pass


def test_weights_come_from_the_seed_and_the_global_generator_stays():
    state = torch.get_rng_state()
    one, again, other = (build(Net(arch="vgg", width=8), COLOUR, 10, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = list(zip(one.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(mine, same) for mine, same, _ in pairs)
    assert not all(torch.equal(mine, another) for mine, _, another in pairs)


def test_the_memory_format_changes_no_logit_beyond_rounding():
    built = build(Net(arch="resnet", depth=8), COLOUR, 10, 0).eval()
    images = torch.randn(4, *COLOUR)
    fast = built(images.contiguous(memory_format=torch.channels_last))
    plain = built.to(memory_format=torch.contiguous_format)(images)
    assert torch.allclose(fast, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "shape", "told"),
    [
        (Net(arch="convnet", depth=4), (1, 8, 8), "8 x 8 are too small for depth 4 -> set it to 3 or less"),
        (Net(arch="convnet"), (3, 1, 1), "1 x 1 are too small for depth 3"),
        (Net(arch="resnet", depth=18), COLOUR, "depth 6n + 2, not 18"),
        (Net(arch="resnet", depth=2), COLOUR, "depth 6n + 2, not 2"),
        (Net(arch="vgg", norm="instance"), (3, 16, 16), "instance norm makes a map of one pixel zero"),
        (Net(arch="resnet", depth=8, norm="instance"), (3, 4, 4), "instance norm makes a map of one pixel zero"),
        (Net(arch="resnet18", norm="instance"), (3, 8, 8), "instance norm makes a map of one pixel zero"),
        (Net(arch="resnet18", depth=20), COLOUR, "resnet18 has no depth"),
        (Net(arch="mlp", norm="batch"), COLOUR, "mlp has no norm"),
        (Net(arch="vgg", depth=11), COLOUR, "vgg has no depth"),
    ],
)
def test_a_network_that_cannot_be_is_told_in_one_line(net: Net, shape: Shape, told: str):
    with pytest.raises(ConfigError) as error:
        build(net, shape, 10, 0)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_only_timm_takes_the_name_of_a_model_and_it_needs_one():
    for settings in ({"arch": "timm"}, {"arch": "vgg", "timm": "resnet18"}):
        with pytest.raises(ValidationError, match="needs the name of a model"):
            Net(**settings)


def test_a_model_of_timm_gives_logits_and_features():
    pytest.importorskip("timm", reason="timm needs torchvision, which is not installed", exc_type=ImportError)
    net = build(Net(arch="timm", timm="resnet18"), COLOUR, 7, 0)
    with features_of(net, feature_names(net)) as found:
        assert net(torch.zeros(2, *COLOUR)).shape == (2, 7)
    assert len(found) >= 4
    with pytest.raises(ConfigError, match="cannot take images of 3 x 32 x 32"):
        build(Net(arch="timm", timm="vit_tiny_patch16_224"), COLOUR, 7, 0)
    with pytest.raises(ConfigError, match="timm has no model"):
        build(Net(arch="timm", timm="없는모델"), COLOUR, 7, 0)
