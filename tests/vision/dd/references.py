"""Gradient matching class by class as its definition reads: what the fast forms must equal, and be faster than."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy


def rows_apart(synthetic: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Sum over the rows of one weight of 1 - cosine."""
    total = torch.zeros((), dtype=real.dtype, device=real.device)
    for mine, its in zip(synthetic.flatten(1), real.flatten(1), strict=True):
        total = total + 1 - (mine @ its) / (mine.norm() * its.norm()).clamp_min(1e-30)
    return total


def apart(synthetic: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """`rows_apart` in one go, as the papers' code computes it."""
    mine, its = synthetic.flatten(1), real.flatten(1)
    return (1 - (mine * its).sum(1) / (mine.norm(dim=1) * its.norm(dim=1)).clamp_min(1e-30)).sum()


def matching_by_class(net: nn.Module, synthetic: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The loss of DC for images [classes, n, C, H, W], one class after the other."""
    weights = list(net.parameters())
    total = torch.zeros((), dtype=real.dtype, device=real.device)
    for label, (made, some) in enumerate(zip(synthetic, real, strict=True)):
        theirs = torch.full((len(some),), label, device=real.device)
        target = torch.autograd.grad(cross_entropy(net(some), theirs), weights)
        mine = torch.autograd.grad(cross_entropy(net(made), theirs[:1].expand(len(made))), weights, create_graph=True)
        for one, other in zip(mine, target, strict=True):
            if one.ndim > 1:
                total = total + apart(one, other.detach())
    return total
