"""Networks with fewer weights: single weights held at zero, and whole channels taken out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from llmdistill.errors import ConfigError
from llmdistill.vision.trace import called, graph_of, num_calls

Masks = dict[str, torch.Tensor]
"""By a weight's name: true where it stays."""


def prunable(net: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of convolutions and linear layers; biases and norms are left alone."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return {f"{name}.weight": module.weight for name, module in net.named_modules() if isinstance(module, kinds)}


def magnitude_masks(net: nn.Module, sparsity: float) -> Masks:
    """Masks that leave out the `sparsity` of all weights together that are nearest to zero."""
    weights = prunable(net)
    everything = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
    number = round(sparsity * len(everything))
    kept = torch.ones_like(everything, dtype=torch.bool)
    kept[everything.argsort(stable=True)[:number]] = False
    parts = torch.split(kept, [weight.numel() for weight in weights.values()])
    return {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}


def enforce(net: nn.Module, masks: Masks, optimiser: torch.optim.Optimizer | None = None) -> None:
    """Set masked weights to zero, and all that the optimiser would move them by."""
    weights = prunable(net)
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].mul_(mask)
            state = optimiser.state.get(weights[name], {}) if optimiser else {}
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.shape == mask.shape:
                    value.mul_(mask)


def sparsity_of(net: nn.Module) -> float:
    """Share of zeros among the weights of convolutions and linear layers."""
    weights = prunable(net).values()
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def sparsity_at(round_number: int, rounds: int, sparsity: float) -> float:
    """Sparsity after round 1, 2, ... of `rounds`: much at first, less and less (arXiv 1710.01878, equation 1)."""
    return sparsity * (1 - (1 - round_number / rounds) ** 3)


@dataclass
class Channels:
    """Output channels of a layer that can go: what makes them, what is done to each alone, and who reads them.

    Attributes:
        norms: norms with weights for each of the channels.
    """

    name: str
    maker: nn.Conv2d | nn.Linear
    norms: list[nn.BatchNorm2d | nn.GroupNorm] = field(default_factory=list)
    readers: list[nn.Conv2d | nn.Linear] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.maker.weight)

    def norm_of_each(self) -> torch.Tensor:
        """L1 norm of each channel's filter (Li et al., arXiv 1608.08710)."""
        return self.maker.weight.detach().abs().flatten(1).sum(1)


_EACH_VALUE = (
    nn.ReLU | nn.ReLU6 | nn.LeakyReLU | nn.GELU | nn.SiLU | nn.Hardswish | nn.Identity | nn.Dropout | nn.Dropout2d
)  # fmt: skip
_POOLS = nn.AvgPool2d | nn.MaxPool2d | nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d
"""These and the ones above do the same to every channel by itself, and leave one of zeros at zero."""

_RELU = ("relu", "relu_", nn.functional.relu, torch.relu)
_FLATTEN = ("flatten", torch.flatten)
_MEAN = ("mean", torch.mean)
_PLACES = ((2, 3), [2, 3], (-2, -1), [-2, -1])


def channels_of(net: nn.Module) -> list[Channels]:
    """The layers whose output channels can be taken out without a change to anything but their readers.

    Where channels are added to others (at the ends of residual blocks) they stay.

    Raises:
        ConfigError: the calls of the network cannot be followed, or it has no such layer.
    """
    graph = graph_of(net)
    if graph is None:
        what = "the calls of this network cannot be followed, so no channels can be taken out"
        raise ConfigError(what, where="structure", do="set structure: weights")
    calls = num_calls(net, graph)
    found = [each for node in graph.nodes if (each := _channels(net, node)) is not None]
    once = [each for each in found if all(calls[one] == 1 for one in (each.maker, *each.norms, *each.readers))]
    if not once:
        raise ConfigError("this network has no channels that can be taken out", where="structure")
    return once


def _channels(net: nn.Module, node: fx.Node) -> Channels | None:
    maker = called(net, node)
    if not _plain(maker):
        return None
    found = Channels(str(node.target), maker)  # type: ignore[arg-type]
    return found if _follow(net, node, found, type(maker) is nn.Linear) and found.readers else None


def _plain(module: nn.Module | None) -> bool:
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def _follow(net: nn.Module, node: fx.Node, found: Channels, flat: bool) -> bool:
    """Whether all that the output goes through does the same to every channel, as far as the next layers.

    Args:
        flat: the channels have no height and width any more.
    """
    for user in node.users:
        module = called(net, user)
        if _plain(module):
            if flat != isinstance(module, nn.Linear):
                return False
            found.readers.append(module)  # type: ignore[arg-type]
            continue
        if not flat and _norm(module):
            found.norms.append(module)  # type: ignore[arg-type]
        after = flat or _flattens(user)
        alone = isinstance(module, _EACH_VALUE) or user.target in _RELU
        if not alone and (flat or not (_norm(module) or isinstance(module, _POOLS) or after)):
            return False
        if not _follow(net, user, found, after):
            return False
    return True


def _norm(module: nn.Module | None) -> bool:
    """A norm of each channel by itself that can set one to zero."""
    alone = type(module) is nn.BatchNorm2d or (type(module) is nn.GroupNorm and _instance(module))
    return alone and getattr(module, "weight", None) is not None


def _instance(norm: nn.GroupNorm) -> bool:
    return norm.num_groups == norm.num_channels


def _flattens(node: fx.Node) -> bool:
    arguments = (*node.args[1:], *node.kwargs.values())
    if node.target in _FLATTEN:
        return arguments == (1,)
    return node.target in _MEAN and len(arguments) == 1 and arguments[0] in _PLACES


def strongest(channels: Channels, number: int) -> torch.Tensor:
    """Indices, in order, of all but the `number` channels with the least norm."""
    order = channels.norm_of_each().argsort(stable=True)
    return order[number:].sort().values


def silence(channels: Channels, kept: torch.Tensor) -> None:
    """Set all but the kept channels to zero where they are; the network stays as large as it was."""
    gone = torch.ones(len(channels), dtype=torch.bool, device=kept.device)
    gone[kept] = False
    with torch.no_grad():
        for module in (channels.maker, *channels.norms):
            for tensor in (module.weight, module.bias):
                if tensor is not None:
                    tensor[gone] = 0.0


def take_out(channels: Channels, kept: torch.Tensor) -> None:
    """Remove all but the kept channels, and what reads them."""
    before = len(channels)
    for module in (channels.maker, *channels.norms):
        for name in ("weight", "bias", "running_mean", "running_var"):
            _slice(module, name, kept)
    for reader in channels.readers:
        each = reader.weight.shape[1] // before  # a linear layer behind `flatten` has several inputs a channel
        places = (kept[:, None] * each + torch.arange(each, device=kept.device)).flatten()
        _slice(reader, "weight", places, 1)
        _set_sizes(reader)
    for module in (channels.maker, *channels.norms):
        _set_sizes(module)


def _slice(module: nn.Module, name: str, kept: torch.Tensor, dim: int = 0) -> None:
    tensor = getattr(module, name, None)
    if tensor is None:
        return
    left = tensor.detach().index_select(dim, kept)
    setattr(module, name, nn.Parameter(left, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else left)


def _set_sizes(module: nn.Module) -> None:
    """Make what a layer says of its size true of its weights."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    sizes: dict[type[nn.Module], dict[str, int]] = {
        nn.Conv2d: {"out_channels": 0, "in_channels": 1},
        nn.Linear: {"out_features": 0, "in_features": 1},
        nn.BatchNorm2d: {"num_features": 0},
        nn.GroupNorm: {"num_channels": 0, "num_groups": 0},
    }
    for name, dim in sizes.get(type(module), {}).items():
        setattr(module, name, weight.shape[dim])


def resize(net: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Take as many channels out of a network as the weights that are to be loaded into it have lost."""
    for name, module in net.named_modules():
        weight, new = getattr(module, "weight", None), tensors.get(f"{name}.weight")
        known = _plain(module) or _norm(module) or hasattr(module, "weight_scale")
        if known and weight is not None and new is not None and _fewer(weight, new):
            for own in ("weight", "bias", "running_mean", "running_var", "weight_scale"):
                _slice(module, own, torch.arange(len(new), device=weight.device))
            if weight.dim() > 1:
                _slice(module, "weight", torch.arange(new.shape[1], device=weight.device), 1)
            _set_sizes(module)


def _fewer(weight: torch.Tensor, new: torch.Tensor) -> bool:
    """Whether some channels are missing and nothing else is different."""
    if weight.dim() != new.dim() or weight.shape == new.shape or weight.shape[2:] != new.shape[2:]:
        return False
    return all(one <= other for one, other in zip(new.shape[:2], weight.shape[:2], strict=True))


def chosen(net: nn.Module, sparsity: float, originals: Mapping[str, int]) -> list[tuple[Channels, torch.Tensor]]:
    """Each layer with the channels that stay when `sparsity` of its original ones are gone; one always stays.

    Args:
        originals: numbers of channels before anything was taken out, by the layer's name.
    """
    found = []
    for channels in channels_of(net):
        left = max(1, round((1 - sparsity) * originals[channels.name]))
        found.append((channels, strongest(channels, max(0, len(channels) - left))))
    return found
