"""Faster blocks give what the plain ones give, by the same parameters, down to the second derivative."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import group_norm

from llmdistill.vision.config import Net
from llmdistill.vision.dd.blocks import PatchBlock, Pooled, RowBlock, fastest, normalised, swift
from llmdistill.vision.dd.planes import Planes
from llmdistill.vision.models import Shape, build, embed

GREY, COLOUR, MANY, ODD = (1, 28, 28), (3, 16, 16), (5, 16, 16), (1, 10, 14)
SHAPES = pytest.mark.parametrize("shape", [GREY, COLOUR, MANY, ODD], ids=["grey", "colour", "many", "odd"])


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def convnet(shape: Shape, depth: int = 3) -> nn.Module:
    """With scales and shifts of norms that matter."""
    net = build(Net(width=8, depth=depth), shape, 4, 0).double()
    for number, parameter in enumerate(net.parameters()):
        if parameter.ndim == 1:
            parameter.data = drawn(*parameter.shape, seed=number)
    return net


def derivatives(net: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Output, first derivatives, and the second by images and parameters along a drawn direction."""
    images, parameters = images.clone().requires_grad_(), list(net.parameters())
    out = net(images)
    first = torch.autograd.grad(out.square().sum(), parameters, create_graph=True, materialize_grads=True)
    along = [drawn(*some.shape, seed=number) for number, some in enumerate(first)]
    second = torch.autograd.grad(first, [images, *parameters], along, materialize_grads=True)
    return [out, *first, *second]


def same(mine: torch.Tensor, its: torch.Tensor) -> None:
    assert float((mine - its).detach().norm()) <= 1e-10 * max(1.0, float(its.detach().norm()))


@SHAPES
def test_results_and_both_derivatives_are_those_of_the_plain_network(shape: Shape):
    net, images = convnet(shape, 2 if shape == ODD else 3), drawn(5, *shape)
    for mine, its in zip(derivatives(swift(net), images), derivatives(net, images), strict=True):
        same(mine, its)


def test_second_gradients_can_be_mapped_over_classes():
    net = convnet(GREY)
    named = {name: parameter.detach() for name, parameter in net.named_parameters()}
    found = []
    for form in (swift(net), net):
        images = drawn(3, 2, *GREY).requires_grad_()
        first = vmap(
            grad(lambda named, some, form=form: functional_call(form, named, (some,)).square().sum()), (None, 0)
        )(named, images)
        (second,) = torch.autograd.grad(sum(each.square().sum() for each in first.values()), images)
        found.append(second)
    same(*found)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_normalised_rows_and_their_derivatives_are_those_of_group_norm(eps: float):
    found = []
    for form in (
        lambda rows: normalised(rows, eps),
        lambda rows: group_norm(rows.mT, rows.shape[2], None, None, eps).mT,
    ):
        rows, along, other = drawn(2, 6, 3).requires_grad_(), drawn(2, 6, 3, seed=2).requires_grad_(), drawn(2, 6, 3)
        out = form(rows)
        (first,) = torch.autograd.grad(out, rows, along, create_graph=True)
        found.append([out, first, *torch.autograd.grad(first, (rows, along), other.roll(1))])
    for mine, its in zip(*found, strict=True):
        same(mine, its)


def test_derivatives_of_normalised_and_pooled_rows_are_those_of_finite_differences():
    rows, quarters = drawn(2, 6, 3).requires_grad_(), drawn(2, 4, 3, 2).requires_grad_()

    def rows_normalised(rows: torch.Tensor) -> torch.Tensor:
        return normalised(rows, 1e-2)

    def pooled(quarters: torch.Tensor) -> torch.Tensor:
        return Pooled.apply(quarters.clone())

    assert torch.autograd.gradcheck(rows_normalised, rows) and torch.autograd.gradgradcheck(rows_normalised, rows)
    assert torch.autograd.gradcheck(pooled, quarters) and torch.autograd.gradgradcheck(pooled, quarters)


def test_the_third_derivative_is_right_too():
    found = []
    for form in (lambda rows: normalised(rows, 1e-2), lambda rows: group_norm(rows.mT, 3, None, None, 1e-2).mT):
        rows = drawn(2, 6, 3).requires_grad_()
        (first,) = torch.autograd.grad(form(rows).pow(3).sum(), rows, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), rows, create_graph=True)
        found += torch.autograd.grad(second.pow(2).sum(), rows)
    same(*found)


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_an_image_of_one_value_is_normalised_as_plainly(value: float):
    net = convnet(COLOUR)
    images = torch.full((2, *COLOUR), value, dtype=torch.float64)
    for mine, its in zip(derivatives(swift(net), images), derivatives(net, images), strict=True):
        same(mine, its)


@pytest.mark.parametrize("level", [0.0, 30.0])
def test_images_far_from_zero_lose_no_more_digits_in_float32(level: float):
    net = convnet(COLOUR)
    images = drawn(4, *COLOUR) + level
    exact, single = net(images).detach(), copy.deepcopy(net).float()
    plain, mine = (form(images.float()).double().detach() for form in (single, swift(single)))
    assert float((mine - exact).norm()) <= 3 * float((plain - exact).norm()) + 1e-6


def test_parameters_are_the_same_ones_under_the_same_names_and_the_network_stays_as_it_was():
    net = convnet(GREY)
    before = [type(module) for module in net.modules()]
    named = dict(swift(net).named_parameters())
    assert list(named) == [name for name, _ in net.named_parameters()]
    assert all(named[name] is parameter for name, parameter in net.named_parameters())
    assert [type(module) for module in net.modules()] == before
    assert swift(net).training and not swift(net.eval()).training


def test_features_are_found_in_it():
    net, images = convnet(GREY), drawn(3, *GREY)
    same(embed(swift(net), images), embed(net, images))


@pytest.mark.parametrize(("shape", "first"), [(GREY, PatchBlock), (COLOUR, PatchBlock), (MANY, RowBlock)])
def test_patches_are_for_images_of_few_channels(shape: Shape, first: type[nn.Module]):
    assert [type(block) for block in swift(convnet(shape)).blocks] == [first, RowBlock, RowBlock]


@pytest.mark.parametrize(
    "net",
    [Net(width=4, norm="batch"), Net(width=32, norm="group"), Net(width=4, norm="none"), Net(arch="mlp"),
     Net(arch="resnet", width=4, depth=8, norm="instance"), Net(arch="vgg", width=2, norm="instance")],
    ids=lambda net: f"{net.arch}-{net.norm}",
)  # fmt: skip
def test_other_networks_stay_as_they_are_and_go_by_planes(net: Net):
    built = build(net, (3, 32, 32), 3, 0)
    found, form = fastest(built)
    assert found is built and isinstance(form, Planes)


@pytest.mark.parametrize(
    "changed",
    [
        lambda: nn.Conv2d(3, 4, 3, padding=1, stride=2), lambda: nn.Conv2d(3, 4, 5, padding=2),
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), lambda: nn.Conv2d(3, 4, 3, padding="same"),
        lambda: nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        lambda: nn.GroupNorm(2, 4), lambda: nn.GroupNorm(4, 4, affine=False),
        lambda: nn.AvgPool2d(2, padding=1), lambda: nn.AvgPool2d(2, stride=1), lambda: nn.AvgPool2d(2, ceil_mode=True),
    ],
    ids=["stride", "kernel", "reflect", "same", "dilation", "groups", "affine", "pad", "overlap", "ceil"],
)  # fmt: skip
def test_blocks_that_are_another_thing_stay(changed: object):
    usual = [nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2)]
    other = changed()  # type: ignore[operator]
    block = nn.Sequential(*(other if type(other) is type(each) else each for each in usual))
    assert swift(block) is block
    assert swift(nn.Sequential(*usual)) is not block
