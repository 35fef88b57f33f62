"""Networks that give logits, and their features by name through hooks.

`ConvNet` is the network of the dataset-distillation papers (arXiv 2006.05929, appendix), `ResNet` the CIFAR form of
arXiv 1512.03385 section 4.2 or ResNet-18, `VGG` the 11-layer form with one linear layer.
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
        torch.default_generator.manual_seed(seed)  # not those of CUDA, which are not restored
        return channels_last(_FAMILIES[net.arch](net, shape, num_classes))


def channels_last(net: nn.Module) -> nn.Module:
    """The network with its convolutions' weights in the memory format in which they are fastest."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net


def _norm(kind: str, channels: int, pixels: int) -> nn.Module:
    """A normalisation of maps of so many pixels."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "none":
        return nn.Identity()
    if kind == "instance" and pixels == 1:
        what = "instance norm makes a map of one pixel zero, and these images become as small"
        raise ConfigError(what, where="norm", do="choose another norm, fewer layers or larger images")
    sixteens = next(number for number in range(max(1, channels // 16), 0, -1) if channels % number == 0)
    groups = {"instance": channels, "group": sixteens, "layer": 1}
    return nn.GroupNorm(groups[kind], channels)


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
            padding = 3 if number == 0 and channels == 1 and height == side == 28 else 1
            height, side = height + 2 * padding - 2, side + 2 * padding - 2
            if min(height, side) < 2:
                what = f"images of {shape[1]} x {shape[2]} are too small for depth {depth}"
                raise ConfigError(what, where="depth", do=f"set it to {number} or less, or use larger images")
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(channels if number == 0 else width, width, 3, padding=padding),
                    _norm(norm, width, height * side),
                    nn.ReLU(),
                    nn.AvgPool2d(2),
                )
            )
            height, side = height // 2, side // 2
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
    """Two 3x3 convolutions beside a shortcut; where the shape changes the shortcut is a 1x1 convolution.

    Every `stride`-th pixel is taken before that convolution, which is the same as a convolution with a stride. oneDNN
    writes past its buffer in the gradient of a narrow one with a stride (uxlfoundation/oneDNN issue 6035).
    """

    def __init__(self, before: int, after: int, stride: int, norm: str, pixels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = _norm(norm, after, pixels)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = _norm(norm, after, pixels)
        self.sampled = nn.Identity() if stride == 1 else nn.AvgPool2d(1, stride)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), _norm(norm, after, pixels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (out + self.shortcut(self.sampled(x))).relu()


class ResNet(nn.Module):
    """Groups of `layers[g]` residual blocks with `width` * 2^g channels; every group but the first halves the maps.

    The CIFAR form has three groups of (depth - 2) / 6 blocks. ResNet-18 for small images, that of the
    dataset-distillation papers, has four groups of two, width 64, and a first convolution without stride.
    """

    def __init__(
        self, shape: Shape, num_classes: int, layers: Sequence[int], width: int = 16, norm: str = "batch"
    ) -> None:
        super().__init__()
        channels, height, side = shape
        stem_norm = _norm(norm, width, height * side)
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), stem_norm, nn.ReLU())
        self.blocks = nn.Sequential()
        before = width
        for group, number_of_blocks in enumerate(layers):
            after, blocks = width * 2**group, []
            if group:
                height, side = -(-height // 2), -(-side // 2)
            for number in range(number_of_blocks):
                blocks.append(_Residual(before, after, 2 if group and number == 0 else 1, norm, height * side))
                before = after
            self.blocks.append(nn.Sequential(*blocks))
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, classes]."""
        return self.classifier(self.blocks(self.stem(images)).mean((2, 3)))


def _cifar_resnet(shape: Shape, num_classes: int, depth: int = 20, **given: Any) -> ResNet:
    if depth < 8 or (depth - 2) % 6:
        what = f"the CIFAR form of ResNet has depth 6n + 2, not {depth}"
        raise ConfigError(what, where="depth", do="try 8 or 20, or arch resnet18")
    return ResNet(shape, num_classes, [(depth - 2) // 6] * 3, **given)


def _resnet18(shape: Shape, num_classes: int, width: int = 64, **given: Any) -> ResNet:
    return ResNet(shape, num_classes, (2, 2, 2, 2), width, **given)


_VGG11 = ((1,), (2,), (4, 4), (8, 8), (8, 8))
"""Channels of the convolutions of each block, in units of `width`."""


class VGG(nn.Module):
    """VGG-11 with one linear layer; a block is pooled only while the image is larger than one pixel."""

    def __init__(self, shape: Shape, num_classes: int, width: int = 64, norm: str = "batch") -> None:
        super().__init__()
        channels, height, side = shape
        self.blocks = nn.Sequential()
        for block in _VGG11:
            layers: list[nn.Module] = []
            for times in block:
                its_norm = _norm(norm, width * times, height * side)
                layers += [nn.Conv2d(channels, width * times, 3, padding=1), its_norm, nn.ReLU()]
                channels = width * times
            if min(height, side) > 1:
                layers.append(nn.MaxPool2d(2))
                height, side = height // 2, side // 2
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
    except ImportError as error:
        what = f"timm cannot be imported ({error})"
        raise MissingExtraError(what, do="pip install 'llmdistill[vision]' torchvision") from None
    _given(net)
    if net.timm not in timm.list_models():
        raise ConfigError(f"timm has no model {net.timm!r}", where="timm", do="see timm.list_models()")
    built: nn.Module = timm.create_model(net.timm, pretrained=False, in_chans=shape[0], num_classes=num_classes)
    _try(built, shape, str(net.timm))
    return built


def _try(net: nn.Module, shape: Shape, name: str) -> None:
    """Give it one image, so that a size it was not made for is told before anything is trained."""
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, *shape))
    except (AssertionError, RuntimeError, ValueError) as error:
        size = " x ".join(map(str, shape))
        raise ConfigError(f"{name} cannot take images of {size} ({error})", where="timm", do="set data.size") from error
    net.train()


_FAMILIES = {
    "convnet": lambda net, shape, classes: ConvNet(shape, classes, **_given(net, "width", "depth", "norm")),
    "mlp": lambda net, shape, classes: MLP(shape, classes, **_given(net, "width", "depth")),
    "resnet": lambda net, shape, classes: _cifar_resnet(shape, classes, **_given(net, "width", "depth", "norm")),
    "resnet18": lambda net, shape, classes: _resnet18(shape, classes, **_given(net, "width", "norm")),
    "vgg": lambda net, shape, classes: VGG(shape, classes, **_given(net, "width", "norm")),
    "timm": _timm,
}


def feature_names(net: nn.Module) -> list[str]:
    """The modules whose outputs are features, from the input on: each of `blocks`, or what timm says of a model."""
    blocks = getattr(net, "blocks", None)
    if blocks is not None:
        return [f"blocks.{number}" for number in range(len(blocks))]
    known = dict(net.named_modules())
    told = [stage["module"] for stage in getattr(net, "feature_info", None) or [] if "module" in stage]
    return [name for name in told if name in known]


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


def embed(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """[N, d]: what the last linear layer is given.

    Raises:
        ConfigError: the network has no last linear layer by the name `classifier`.
    """
    last = getattr(net, "classifier", None)
    if not isinstance(last, nn.Linear):
        raise ConfigError("its last layer is not a linear one", where="arch", do="take convnet, resnet, vgg or mlp")
    found: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        net(images)
    finally:
        hook.remove()
    return found[0]


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; each module has its own mode again afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
