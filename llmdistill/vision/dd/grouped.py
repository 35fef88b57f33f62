"""Gradients of a network's weights class by class, for all classes in one pass where that is the faster way.

Only weights are taken, not biases nor the scales of norms, because those are what gradient matching compares
(arXiv 2006.05929). Samples must not depend on each other: batch norms are fixed before (`gradient.fix_statistics`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from llmdistill.vision.dd.blocks import fastest, swift
from llmdistill.vision.dd.planes import Planes

Tensors = dict[str, torch.Tensor]

CLASSES_AT_ONCE = 10
"""On a GPU, so that memory does not grow with the number of classes."""

IMAGES_AT_ONCE = 32
"""On a CPU, where larger batches fall out of the caches and each of their tensors is mapped anew."""

ONE_BY_ONE = 300_000
"""Numbers in a class's maps from which classes go one after the other on a CPU: there the blocks of the papers'
ConvNet gain more than one pass does. With 10 images of 28 x 28, width 128, it is 1.9 times as fast, with 3 1.2 times,
with one 0.8 times (`tests/bench/bench_dd.py`)."""


def class_gradients(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, at_once: int | None = None) -> Tensors:
    """{name: [classes, *shape]} of the mean cross-entropy of each class, differentiable in the images.

    Args:
        images: [classes, n, C, H, W].
        labels: [classes, n].
        at_once: classes that are gone through together; None takes all.
    """
    weights, others = _weights(net)
    if _is_large(net, images):
        return _one_by_one(net, weights, others, images, labels)

    def loss(weights: Tensors, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(functional_call(net, {**weights, **others}, (images,)), labels)

    with Planes():
        found: Tensors = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=at_once)(weights, images, labels)
    return found


def _is_large(net: nn.Module, images: torch.Tensor) -> bool:
    """Whether classes are better taken one after the other."""
    if images.is_cuda or swift(net) is net:
        return False
    widest = max(module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d))
    return widest * images[0, :, 0].numel() >= ONE_BY_ONE


def _one_by_one(
    net: nn.Module, weights: Tensors, others: Tensors, images: torch.Tensor, labels: torch.Tensor
) -> Tensors:
    net = swift(net)
    weights = {name: weight.requires_grad_() for name, weight in weights.items()}
    rows = []
    for some, their in zip(images, labels, strict=True):
        loss = cross_entropy(functional_call(net, {**weights, **others}, (some,)), their)
        rows.append(torch.autograd.grad(loss, tuple(weights.values()), create_graph=True))
    return _stacked(weights, rows)


def _stacked(names: Iterable[str], rows: Iterable[tuple[torch.Tensor, ...]]) -> Tensors:
    """Of each class its gradients -> of each weight those of all classes."""
    return {name: torch.stack(some) for name, some in zip(names, zip(*rows, strict=True), strict=True)}


def real_gradients(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Tensors:
    """What `class_gradients` gives, with no way back to the images; for many images of each class."""
    if images.is_cuda:
        with torch.no_grad():
            return class_gradients(net, images, labels, CLASSES_AT_ONCE)
    names, weights = zip(*((name, weight) for name, weight in net.named_parameters() if weight.ndim > 1), strict=True)
    rows = [_mean_gradient(net, weights, *pair) for pair in zip(images.detach(), labels, strict=True)]
    return _stacked(names, rows)


def _mean_gradient(
    net: nn.Module, weights: tuple[torch.Tensor, ...], images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    net, form = fastest(net)
    sums = [torch.zeros_like(weight) for weight in weights]
    for some, their in zip(*(torch.split(each, IMAGES_AT_ONCE) for each in (images, labels)), strict=True):
        with torch.enable_grad(), form:
            loss = cross_entropy(net(some), their, reduction="sum")
        found = torch.autograd.grad(loss, weights)
        torch._foreach_add_(sums, found)
    return tuple(each.div_(len(images)) for each in sums)


def _weights(net: nn.Module) -> tuple[Tensors, Tensors]:
    """Weights and all other parameters, cut from the network's own so that only images get gradients."""
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    weights = {name: parameter for name, parameter in parameters.items() if parameter.ndim > 1}
    return weights, {name: parameter for name, parameter in parameters.items() if name not in weights}
