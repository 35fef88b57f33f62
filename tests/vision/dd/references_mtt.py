"""Trajectory matching as its definition says: one graph through all steps over one flat vector of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call


def unrolled_loss(
    net: nn.Module,
    start: torch.Tensor,
    target: torch.Tensor,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    step_size: torch.Tensor,
    through_parameters: bool = True,
) -> torch.Tensor:
    """The loss, differentiable in the batches' images and the step size.

    Args:
        through_parameters: False cuts what a gradient's own parameters owe earlier images.
    """
    vector = start.clone().requires_grad_(True)
    for images, labels in batches:
        at = vector if through_parameters else vector.detach().requires_grad_(True)
        loss = nn.functional.cross_entropy(functional_call(net, unflattened(net, at), (images,)), labels)
        vector = vector - step_size * torch.autograd.grad(loss, at, create_graph=True)[0]
    return (vector - target).square().sum() / (start - target).square().sum()


def unflattened(net: nn.Module, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    """A network's parameters by name."""
    named = dict(net.named_parameters())
    parts = vector.split([parameter.numel() for parameter in named.values()])
    return {name: part.view(own.shape) for (name, own), part in zip(named.items(), parts, strict=True)}
