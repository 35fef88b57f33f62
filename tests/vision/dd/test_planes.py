"""Plane by plane, operations on maps give what they give otherwise, whatever network they stand in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from llmdistill.vision.config import Net
from llmdistill.vision.dd.planes import Planes
from llmdistill.vision.models import build

NETS = [Net(arch="convnet", width=8), Net(arch="resnet", width=4, depth=8, norm="group"), Net(arch="vgg", width=2)]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Counting(Planes):
    """Counts the poolings that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.poolings = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.poolings += func is functional.avg_pool2d
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.arch)
def test_first_and_second_gradients_are_those_of_the_plain_operations(net: Net):
    built = build(net, (3, 16, 16), 3, 0).double().eval()
    found = []
    for mode in (Planes(), torch.enable_grad()):
        pixels = images(2, 3, 16, 16).requires_grad_()
        with mode:
            loss = built(pixels).square().sum()
        first = torch.autograd.grad(loss, list(built.parameters()), create_graph=True)
        (second,) = torch.autograd.grad(sum(each.square().sum() for each in first), pixels)
        found.append([loss, *first, second])
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)


def test_they_can_be_mapped_over_classes():
    net = build(NETS[0], (1, 16, 16), 3, 0).double()
    named = {name: parameter.detach() for name, parameter in net.named_parameters()}
    pixels = images(3, 2, 1, 16, 16)
    with Planes():
        found = vmap(grad(lambda named, some: functional_call(net, named, (some,)).square().sum()), (None, 0))(
            named, pixels
        )
    for place, some in enumerate(pixels):
        its = torch.autograd.grad(net(some).square().sum(), list(net.parameters()))
        for mine, wanted in zip(found.values(), its, strict=True):
            torch.testing.assert_close(mine[place], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 3, 8, 8), {"kernel_size": 2}),
        ((2, 3, 4, 12), {"kernel_size": (2, 2), "stride": 2}),
        ((2, 3, 7, 8), {"kernel_size": 2}),
        ((2, 3, 7, 8), {"kernel_size": 2, "ceil_mode": True}),
        ((2, 3, 8, 8), {"kernel_size": 2, "stride": 1}),
        ((2, 3, 8, 8), {"kernel_size": 2, "padding": 1}),
        ((2, 3, 8, 8), {"kernel_size": 2, "divisor_override": 3}),
        ((2, 3, 8, 8), {"kernel_size": 4}),
        ((3, 8, 8), {"kernel_size": 2}),
    ],
)
def test_every_pooling_is_the_one_that_was_asked_for(shape: tuple[int, ...], options: dict[str, Any]):
    expected = functional.avg_pool2d(images(*shape), **options)
    with Counting() as mode:
        torch.testing.assert_close(nn.AvgPool2d(**options)(images(*shape)), expected, rtol=1e-12, atol=1e-12)
    assert mode.poolings == 1


def test_maps_lie_plane_by_plane_inside_and_as_before_outside():
    net = build(NETS[0], (3, 16, 16), 3, 0)
    convolution, pixels = net.blocks[0][0], torch.randn(2, 3, 16, 16)
    with Planes():
        assert convolution(pixels).is_contiguous()
    assert not convolution(pixels).is_contiguous()
