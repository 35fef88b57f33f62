"""Gradients of a network's weights class by class, for all classes in one pass.

Only weights are taken, not biases nor the scales of norms, because those are what gradient matching compares
(arXiv 2006.05929). Samples must not depend on each other: batch norms are fixed before (`gradient.fix_statistics`).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from llmdistill.vision.dd.blocks import fastest
from llmdistill.vision.dd.planes import Planes

Tensors = dict[str, torch.Tensor]

CLASSES_AT_ONCE = 10
"""On a GPU, so that memory does not grow with the number of classes."""

IMAGES_AT_ONCE = 32
"""On a CPU, where larger batches fall out of the caches and each of their tensors is mapped anew."""


def class_gradients(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, at_once: int | None = None) -> Tensors:
    """{name: [classes, *shape]} of the mean cross-entropy of each class, differentiable in the images.

    Args:
        images: [classes, n, C, H, W].
        labels: [classes, n].
        at_once: classes that are gone through together; None takes all.
    """
    weights, others = _weights(net)

    def loss(weights: Tensors, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(functional_call(net, {**weights, **others}, (images,)), labels)

    with Planes():
        found: Tensors = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=at_once)(weights, images, labels)
    return found


def real_gradients(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Tensors:
    """What `class_gradients` gives, with no way back to the images; for many images of each class."""
    if images.is_cuda:
        with torch.no_grad():
            return class_gradients(net, images, labels, CLASSES_AT_ONCE)
    names, weights = zip(*((name, weight) for name, weight in net.named_parameters() if weight.ndim > 1), strict=True)
    rows = [_mean_gradient(net, weights, *pair) for pair in zip(images.detach(), labels, strict=True)]
    return {name: torch.stack(some) for name, some in zip(names, zip(*rows, strict=True), strict=True)}


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
