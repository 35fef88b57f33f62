"""Further architectures that are trained on every set: a set should not be good for one network alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.models import Shape, build

Across = Literal["default", "none"] | tuple[Net, ...]
"""How a pipeline file says which ones."""

_SMALL = 16
"""Images with sides below it are given ResNet-18 and VGG-11 of a quarter of their width."""


@dataclass(frozen=True)
class Others:
    """The further architectures of a run by their titles, and those that cannot be, with the reason."""

    nets: dict[str, Net] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What a reader of the numbers has to be told."""
        if not self.nets and not self.left_out:
            return ["cross-architecture is skipped: how the sets do with any other network is not known"]
        return [f"{title} is left out: {reason}" for title, reason in self.left_out.items()]


def title_of(net: Net) -> str:
    """A short name that tells apart what differs."""
    parts = [net.timm or net.arch, net.norm, net.width and f"width {net.width}", net.depth and f"depth {net.depth}"]
    return " ".join(part for part in parts if part)


def others_of(across: Across, net: Net, shape: Shape, num_classes: int) -> Others:
    """What is trained beside the network that sets are made for.

    The default are the ConvNet, ResNet-18, VGG-11 and an MLP. In the papers all but the MLP have instance norm; where
    maps become too small for it group norm takes its place. ConvNet and ResNet-18 are there with batch norm too.

    Raises:
        ConfigError: a network that the user names cannot be built, or stands there twice.
    """
    if across == "none":
        return Others()
    if across == "default":
        return _default(net, shape, num_classes)
    titles = [title_of(each) for each in across]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} stands there twice", where="across", do="remove one")
    for each in across:
        _try(each, shape, num_classes)
    return Others(dict(zip(titles, across, strict=True)))


def _default(net: Net, shape: Shape, num_classes: int) -> Others:
    others = Others()
    for wanted in _wanted(net, shape):
        try:
            found = _possible(wanted, shape, num_classes)
        except ConfigError as error:
            others.left_out[title_of(wanted)] = error.what
            continue
        if not _same(found, net):
            others.nets[title_of(found)] = found
    return others


def _wanted(net: Net, shape: Shape) -> Iterator[Net]:
    own = net if net.arch == "convnet" else Net()
    width = 16 if min(shape[1:]) < _SMALL else None
    yield Net(arch="convnet", norm="instance", width=own.width, depth=own.depth)
    yield Net(arch="convnet", norm="batch", width=own.width, depth=own.depth)
    yield Net(arch="resnet18", norm="instance", width=width)
    yield Net(arch="resnet18", norm="batch", width=width)
    yield Net(arch="vgg", norm="instance", width=width)
    yield Net(arch="mlp")


def _possible(net: Net, shape: Shape, num_classes: int) -> Net:
    """The network, or the same with group norm."""
    try:
        _try(net, shape, num_classes)
    except ConfigError:
        if net.norm != "instance":
            raise
        net = net.model_copy(update={"norm": "group"})
        _try(net, shape, num_classes)
    return net


def _try(net: Net, shape: Shape, num_classes: int) -> None:
    """Build it without memory for its weights."""
    with torch.device("meta"):
        build(net, shape, num_classes, 0)


def _same(one: Net, other: Net) -> bool:
    """Whether they differ in nothing but a norm that the ConvNet has anyway."""
    usual = {"norm": "instance"} if other.arch == "convnet" and other.norm is None else {}
    return one == other.model_copy(update=usual) or (one.arch == other.arch == "mlp")
