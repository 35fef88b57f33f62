"""Steps of training whose gradients can be differentiated again, for a network as a function of its parameters.

Nothing is written into the network: its parameters are arguments, so that every step's own are in its graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from llmdistill.vision.dd.blocks import swift

Parameters = list[torch.Tensor]
"""Tensors in the order of a network's parameters."""


@dataclass(frozen=True)
class Step:
    """A gradient of the training loss, and the graph behind it.

    Attributes:
        gradient: by the parameters, detached.
        graph: the same with its graph; `parameters` and `images` are the graph's leaves.
    """

    gradient: Parameters
    graph: Sequence[torch.Tensor]
    parameters: Parameters
    images: torch.Tensor

    def pulled(self, cotangent: Parameters) -> tuple[Parameters, torch.Tensor]:
        """Gradients of <gradient, cotangent> by parameters (a Hessian's product) and by images."""
        found = torch.autograd.grad(self.graph, [*self.parameters, self.images], cotangent, materialize_grads=True)
        return list(found[:-1]), found[-1]

    def pulled_to_images(self, cotangent: Parameters) -> torch.Tensor:
        """The gradient of <gradient, cotangent> by images alone."""
        return torch.autograd.grad(self.graph, self.images, cotangent, materialize_grads=True)[0]


class Inner:
    """Cross-entropy of a network by its parameters."""

    def __init__(self, net: nn.Module) -> None:
        self.net = swift(net.train())
        self.names = [name for name, _ in net.named_parameters()]
        self.shapes = [parameter.shape for parameter in net.parameters()]
        self.sizes = [parameter.numel() for parameter in net.parameters()]

    def split(self, vector: torch.Tensor) -> Parameters:
        """[parameters] as the network's tensors, without a copy."""
        return [some.view(shape) for some, shape in zip(torch.split(vector, self.sizes), self.shapes, strict=True)]

    def joined(self, parameters: Parameters) -> torch.Tensor:
        """The other way round."""
        return torch.cat([some.reshape(-1) for some in parameters])

    def gradient(self, parameters: Parameters, images: torch.Tensor, labels: torch.Tensor) -> Parameters:
        """By the parameters, without a graph."""
        leaves = [some.detach().requires_grad_(True) for some in parameters]
        found = torch.autograd.grad(self.loss(leaves, images.detach(), labels), leaves, materialize_grads=True)
        return list(found)

    def step(self, parameters: Parameters, images: torch.Tensor, labels: torch.Tensor) -> Step:
        """The gradient by the parameters, with its graph."""
        leaves = [some.detach().requires_grad_(True) for some in parameters]
        shown = images.detach().requires_grad_(True)
        loss = self.loss(leaves, shown, labels)
        graph = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        return Step([some.detach() for some in graph], graph, leaves, shown)

    def loss(self, parameters: Parameters, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy with class numbers [n] or probabilities [n, classes]."""
        return nn.functional.cross_entropy(self.logits(parameters, images), labels)

    def logits(self, parameters: Parameters, images: torch.Tensor) -> torch.Tensor:
        """[n, classes]."""
        found: torch.Tensor = functional_call(self.net, dict(zip(self.names, parameters, strict=True)), (images,))
        return found


def descended(parameters: Parameters, gradient: Parameters, step_size: float) -> Parameters:
    """One step of gradient descent."""
    return [torch.sub(one, other, alpha=step_size) for one, other in zip(parameters, gradient, strict=True)]


def dot(one: Parameters, other: Parameters) -> torch.Tensor:
    """The inner product of two vectors of parameters."""
    return torch.stack([torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(one, other, strict=True)]).sum()
