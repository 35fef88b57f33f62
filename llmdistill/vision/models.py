"""Networks that give logits, and their features by name through hooks.

`ConvNet` is the network of the dataset-distillation papers (arXiv 2006.05929, appendix), `ResNet` the CIFAR form of
arXiv 1512.03385 section 4.2, `VGG` the 11-layer form with one linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llmdistill.errors import ConfigError, MissingExtraError
from llmdistill.vision.config import Net

Shape = tuple[int, int, int]
"""Channels, height, width of an image."""


def build(net: Net, shape: Shape, num_classes: int, seed: int) -> nn.Module:
    """A network with weights drawn from `seed`; the global generator is left as it was.

    Raises:
        ConfigError: the images are too small for its depth, or timm has no such model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _FAMILIES[net.arch](net, shape, num_classes)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    groups = {"instance": channels, "group": max(1, channels // 16), "layer": 1}
    return nn.Identity() if kind == "none" else nn.GroupNorm(groups[kind], channels)


class ConvNet(nn.Module):
    """`depth` blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling, then a linear layer.

    As in the papers, one-channel images of 28 x 28 are padded to 32 x 32 by the first convolution. With width 128
    and depth 3 it has 320,010 parameters for three channels of 32 x 32 and ten classes.
    """

    def __init__(
        self, shape: Shape, num_classes: int, width: int = 128, depth: int = 3, norm: str = "instance"
    ) -> None:
        super().__init__()
        channels, height, side = shape
        self.blocks = nn.Sequential()
        for number in range(depth):
            padding = 3 if number == 0 and channels == 1 and height == 28 else 1
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(channels if number == 0 else width, width, 3, padding=padding),
                    _norm(norm, width),
                    nn.ReLU(),
                    nn.AvgPool2d(2),
                )
            )
            height, side = (height + 2 * padding - 2) // 2, (side + 2 * padding - 2) // 2
        if min(height, side) < 1:
            raise ConfigError(f"images of {shape[1]} x {shape[2]} are too small for depth {depth}", where="depth")
        self.classifier = nn.Linear(width * height * side, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, classes]."""
        return self.classifier(self.blocks(images).flatten(1))


class MLP(nn.Module):
    """`depth` hidden layers of `width` with ReLU, then a linear layer."""

    def __init__(self, shape: Shape, num_classes: int, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        sizes = [shape[0] * shape[1] * shape[2], *[width] * depth]
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(one, other), nn.ReLU()) for one, other in pairs))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, classes]."""
        return self.classifier(self.blocks(images.flatten(1)))


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut; where the shape changes the shortcut is a 1x1 convolution."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = _norm(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = _norm(norm, after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), _norm(norm, after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (out + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """CIFAR form: depth 6n + 2 in three groups of `width`, 2 x `width` and 4 x `width` channels."""

    def __init__(self, shape: Shape, num_classes: int, width: int = 16, depth: int = 20, norm: str = "batch") -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise ConfigError(
                f"the CIFAR form of ResNet has depth 6n + 2, not {depth}", where="depth", do="try 8 or 20"
            )
        self.stem = nn.Sequential(nn.Conv2d(shape[0], width, 3, 1, 1, bias=False), _norm(norm, width), nn.ReLU())
        self.blocks = nn.Sequential()
        before = width
        for group in range(3):
            after, layers = width * 2**group, []
            for number in range((depth - 2) // 6):
                layers.append(_Residual(before, after, 2 if group and number == 0 else 1, norm))
                before = after
            self.blocks.append(nn.Sequential(*layers))
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, classes]."""
        return self.classifier(self.blocks(self.stem(images)).mean((2, 3)))


_VGG11 = ((1,), (2,), (4, 4), (8, 8), (8, 8))
"""Channels of the convolutions of each block, in units of `width`."""


class VGG(nn.Module):
    """VGG-11 with one linear layer; a block is pooled only while the image is larger than one pixel."""

    def __init__(self, shape: Shape, num_classes: int, width: int = 64, norm: str = "batch") -> None:
        super().__init__()
        channels, side = shape[0], min(shape[1:])
        self.blocks = nn.Sequential()
        for block in _VGG11:
            layers: list[nn.Module] = []
            for times in block:
                layers += [nn.Conv2d(channels, width * times, 3, padding=1), _norm(norm, width * times), nn.ReLU()]
                channels = width * times
            if side > 1:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            self.blocks.append(nn.Sequential(*layers))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, classes]."""
        return self.classifier(self.blocks(images).mean((2, 3)))


def _given(net: Net, *names: str) -> dict[str, Any]:
    """The settings that the user has made, as keyword arguments."""
    found = {name: getattr(net, name) for name in ("width", "depth", "norm")}
    for name, value in found.items():
        if value is not None and name not in names:
            raise ConfigError(f"{net.arch} has no {name}", where=name, do="remove it")
    return {name: value for name, value in found.items() if value is not None}


def _timm(net: Net, shape: Shape, num_classes: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise MissingExtraError("timm is not installed", do="pip install 'llmdistill[vision]'") from None
    _given(net)
    if net.timm not in timm.list_models():
        raise ConfigError(f"timm has no model {net.timm!r}", where="timm", do="see timm.list_models()")
    return timm.create_model(net.timm, pretrained=False, in_chans=shape[0], num_classes=num_classes)


_FAMILIES = {
    "convnet": lambda net, shape, classes: ConvNet(shape, classes, **_given(net, "width", "depth", "norm")),
    "mlp": lambda net, shape, classes: MLP(shape, classes, **_given(net, "width", "depth")),
    "resnet": lambda net, shape, classes: ResNet(shape, classes, **_given(net, "width", "depth", "norm")),
    "vgg": lambda net, shape, classes: VGG(shape, classes, **_given(net, "width", "norm")),
    "timm": _timm,
}


def feature_names(net: nn.Module) -> list[str]:
    """The modules whose outputs are features: each of `blocks`, from the input on, then `classifier`'s input."""
    blocks = getattr(net, "blocks", None)
    if blocks is None:
        return []
    return [f"blocks.{number}" for number in range(len(blocks))]


@contextmanager
def features_of(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Outputs of the named modules, filled by each forward pass inside the block.

    Raises:
        ConfigError: the network has no such module; names the ones it has.
    """
    known = dict(net.named_modules())
    missing = [name for name in names if name not in known]
    if missing:
        there = ", ".join(feature_names(net) or list(known)[1:9])
        raise ConfigError(f"the network has no module {missing[0]!r}", where="features", do=f"there are {there}")
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, __: object, output: torch.Tensor) -> None:
            found[name] = output

        return hook

    hooks = [known[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
