"""Weights that are held at zero, and channels that are taken out."""

import copy

import pytest
import torch
from torch import nn

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.models import build
from llmdistill.vision.pruning import (
    channels_of,
    chosen,
    enforce,
    magnitude_masks,
    prunable,
    silence,
    sparsity_at,
    sparsity_of,
    strongest,
    take_out,
)

NETS = [
    Net(arch="convnet", width=12, depth=2, norm="batch"),
    Net(arch="convnet", width=12, depth=2),
    Net(arch="convnet", width=12, depth=2, norm="none"),
    Net(arch="resnet", width=8, depth=14),
    Net(arch="vgg", width=6),
    Net(arch="mlp", width=20, depth=3),
]


def net_of(settings: Net) -> nn.Module:
    """With batch statistics and affine weights that are not the initial ones."""
    net = build(settings, (3, 16, 16), 10, 0)
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            for tensor in (module.weight, module.bias, *module.buffers()):
                if tensor.is_floating_point():
                    tensor.data += 0.3 * torch.rand(tensor.shape, generator=generator)
    return net.eval()


def images() -> torch.Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def sizes(net: nn.Module) -> dict[str, int]:
    return {channels.name: len(channels) for channels in channels_of(net)}


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


class TestWeights:
    @pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.95])
    def test_the_smallest_of_all_layers_together_go(self, sparsity):
        net = net_of(NETS[3])
        before = torch.cat([weight.detach().abs().flatten() for weight in prunable(net).values()])
        enforce(net, magnitude_masks(net, sparsity))
        left = torch.cat([weight.detach().abs().flatten() for weight in prunable(net).values()])
        assert sparsity_of(net) == pytest.approx(sparsity, abs=1e-4)
        assert before[left == 0].max() <= left[left > 0].min()

    @pytest.mark.parametrize("kind", ["sgd", "nesterov", "adamw"])
    def test_masked_weights_are_zero_after_every_step_with_momentum_and_decay(self, kind):
        net = net_of(NETS[0])
        optimiser = {
            "sgd": lambda: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.05),
            "nesterov": lambda: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True),
            "adamw": lambda: torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.05),
        }[kind]()

        def step():
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(images()), torch.arange(6)).backward()
            optimiser.step()

        for _ in range(3):
            step()
        masks = magnitude_masks(net, 0.7)
        enforce(net, masks, optimiser)
        before = copy.deepcopy(net.state_dict())
        for _ in range(4):
            step()
            assert any(bool((prunable(net)[name][~mask] != 0).any()) for name, mask in masks.items())
            enforce(net, masks, optimiser)
            assert all(bool((prunable(net)[name][~mask] == 0).all()) for name, mask in masks.items())
        moved = [(net.state_dict()[name] - before[name])[mask].abs().max() for name, mask in masks.items()]
        assert min(moved) > 0

    def test_once_masked_nothing_is_left_in_the_optimiser_to_move_them(self):
        net = nn.Sequential(nn.Linear(3, 2))
        optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        net(torch.ones(1, 3)).sum().backward()
        optimiser.step()
        masks = magnitude_masks(net, 0.5)
        enforce(net, masks, optimiser)
        buffer = optimiser.state[net[0].weight]["momentum_buffer"]
        assert (buffer[~masks["0.weight"]] == 0).all() and (buffer[masks["0.weight"]] != 0).all()

    def test_the_next_round_keeps_what_is_gone(self):
        net = net_of(NETS[4])
        first = magnitude_masks(net, 0.4)
        enforce(net, first)
        second = magnitude_masks(net, 0.6)
        assert all(not bool((second[name] & ~mask).any()) for name, mask in first.items())

    def test_the_schedule_ends_at_the_sparsity_and_slows_down(self):
        found = [sparsity_at(number, 4, 0.8) for number in range(5)]
        steps = [after - before for before, after in zip(found, found[1:], strict=False)]
        assert found[0] == 0 and found[-1] == pytest.approx(0.8)
        assert steps == sorted(steps, reverse=True) and steps[-1] > 0


@pytest.mark.parametrize("settings", NETS, ids=str)
class TestChannels:
    def test_without_them_the_network_computes_what_it_did_with_them_at_zero(self, settings):
        masked, smaller = net_of(settings), net_of(settings)
        for net, remove in ((masked, silence), (smaller, take_out)):
            for channels, kept in chosen(net, 0.5, sizes(net)):
                remove(channels, kept)
        assert num_parameters(smaller) < num_parameters(masked)
        assert torch.allclose(smaller(images()), masked(images()), atol=1e-5)
        assert not torch.allclose(masked(images()), net_of(settings)(images()), atol=1e-5)

    def test_half_of_each_layer_goes_in_one_round_or_in_two(self, settings):
        once, twice = net_of(settings), net_of(settings)
        originals = sizes(once)
        for net, steps in ((once, [0.5]), (twice, [0.25, 0.5])):
            for step in steps:
                for channels, kept in chosen(net, step, originals):
                    take_out(channels, kept)
            assert sizes(net) == {name: number // 2 for name, number in originals.items()}

    def test_one_channel_of_each_layer_always_stays(self, settings):
        net = net_of(settings)
        for channels, kept in chosen(net, 0.999, sizes(net)):
            take_out(channels, kept)
        assert set(sizes(net).values()) == {1}
        assert net(images()).isfinite().all()

    def test_what_is_left_can_be_trained(self, settings):
        net = net_of(settings)
        for channels, kept in chosen(net, 0.5, sizes(net)):
            take_out(channels, kept)
        nn.functional.cross_entropy(net.train()(images()), torch.arange(6)).backward()
        assert all(parameter.grad is not None for parameter in net.parameters())


def test_the_channels_with_the_least_l1_norm_go():
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    net[0].weight.data = torch.tensor([[1.0, -1.0], [0.1, 0.1], [0.0, -3.0], [0.9, 0.0]])
    assert strongest(channels_of(net)[0], 2).tolist() == [0, 2]


def test_inside_of_residual_blocks_they_go_and_at_their_ends_they_stay():
    names = sizes(net_of(NETS[3]))
    assert names and all(name.endswith("conv1") for name in names)


class Odd(nn.Module):
    """Two layers with something between that mixes channels or turns zero into something else."""

    def __init__(self, between):
        super().__init__()
        self.one, self.two, self.between = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), between

    def forward(self, x):
        return self.two(self.between(self.one(x)))


@pytest.mark.parametrize(
    "between",
    [
        nn.Sigmoid(),
        nn.Softmax(1),
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4, affine=False),
        nn.PixelShuffle(1),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
    ],
    ids=str,
)
def test_channels_that_something_else_depends_on_stay(between):
    with pytest.raises(ConfigError, match="no channels"):
        channels_of(Odd(between))


def test_a_linear_layer_along_the_width_of_an_image_is_not_taken_for_one_of_channels():
    with pytest.raises(ConfigError, match="no channels"):
        channels_of(nn.Sequential(nn.Conv2d(3, 16, 1), nn.Linear(16, 2)))


def test_a_network_that_cannot_be_followed_is_told_what_to_do():
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ConfigError, match="cannot be followed.*structure: weights"):
        channels_of(Branching(nn.Linear(2, 2), nn.Linear(2, 2)))
