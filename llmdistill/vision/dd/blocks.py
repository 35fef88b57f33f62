"""Blocks of the papers' ConvNet in a form that a CPU goes through faster, with the same results and parameters.

A block is a 3x3 convolution, instance norm, ReLU and 2x2 average pooling. What an instance norm makes of a convolution
of few channels follows from how the image's own 3x3 patches vary together: the first block is one product of patches
with weights into which each image's normalisation has been folded. The others go by rows, the channels of a pixel side
by side, which suits convolution and pooling; PyTorch's own GroupNorm is slow there, and has no second derivative but
one taken apart into its operations, so `Normalised` writes both derivatives out (measured with PyTorch 2.13:
`tests/bench/bench_dd.py`).
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from llmdistill.vision.dd.planes import Planes

MOST_PATCH = 32
"""Numbers in a patch, at most, where patches are worth it: three channels."""

CONVOLUTION = {"kernel_size": (3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
POOLING = {"kernel_size": 2, "stride": 2, "padding": 0, "ceil_mode": False, "divisor_override": None}
"""What blocks have that are gone through faster."""


def swift(net: nn.Module) -> nn.Module:
    """The network with faster blocks where it has such blocks. Its parameters are the same, under the same names."""
    if block := _block(net):
        return block
    children = {name: swift(child) for name, child in net.named_children()}
    if all(child is net._modules[name] for name, child in children.items()):
        return net
    changed = copy.copy(net)
    changed._modules = {**net._modules, **children}
    return changed


def fastest(net: nn.Module) -> tuple[nn.Module, AbstractContextManager[Any]]:
    """The network with faster blocks, or else itself, and the context to call it in."""
    changed = swift(net)
    return changed, Planes() if changed is net else nullcontext()


def _block(net: nn.Module) -> nn.Module | None:
    kinds = [nn.Conv2d, nn.GroupNorm, nn.ReLU, nn.AvgPool2d]
    if type(net) is not nn.Sequential or [type(each) for each in net] != kinds:
        return None
    conv, norm, _, pool = net
    if not (_has(conv, CONVOLUTION) and _has(pool, POOLING)) or isinstance(conv.padding, str):
        return None
    if not norm.affine or norm.num_groups != conv.out_channels:
        return None
    few = int(conv.in_channels) * 9 <= MOST_PATCH  # type: ignore[arg-type]
    return (PatchBlock if few else RowBlock)(*net)


def _has(module: nn.Module, attributes: dict[str, Any]) -> bool:
    return all(getattr(module, name) == value for name, value in attributes.items())


class RowBlock(nn.Sequential):
    """A block by rows."""

    @property
    def parts(self) -> tuple[nn.Conv2d, nn.GroupNorm]:
        """Those that have parameters."""
        conv, norm = self[0], self[1]
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.GroupNorm)
        return conv, norm

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, width, H / 2, W / 2]."""
        if maps.device.type != "cpu":
            return super().forward(maps)  # type: ignore[no-any-return, no-untyped-call]
        conv, norm = self.parts
        by_rows = maps.contiguous(memory_format=torch.channels_last)
        # A constant added to a map is what its norm takes away, so the bias is left out.
        maps = torch.conv2d(by_rows, conv.weight, None, 1, _padding(conv)).permute(0, 2, 3, 1)
        rows = normalised(maps.flatten(1, 2), norm.eps)
        rows = torch.addcmul(norm.bias, rows, norm.weight).relu_()
        return functional.avg_pool2d(rows.view(maps.shape).permute(0, 3, 1, 2), 2)


class PatchBlock(RowBlock):
    """A block by the patches of its images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, width, H / 2, W / 2]."""
        conv, _ = self.parts
        height, width = (size + 2 * pad - 2 for size, pad in zip(images.shape[-2:], _padding(conv), strict=True))
        if images.device.type != "cpu" or height % 2 or width % 2:
            return super().forward(images)
        found = patches(images, *_padding(conv))
        found = found - found.mean(2, keepdim=True)
        folded = self.folded(found @ found.mT / found.shape[2])
        with_one = torch.cat([found, found.new_ones(len(images), 1, found.shape[2])], 1)
        quarters = (with_one.mT @ folded.mT).view(len(images), 4, -1, len(conv.weight))
        rows: torch.Tensor = Pooled.apply(quarters)  # type: ignore[no-untyped-call]
        return rows.view(len(images), height // 2, width // 2, -1).permute(0, 3, 1, 2)

    def folded(self, together: torch.Tensor) -> torch.Tensor:
        """[N, width, 9 C + 1]: what gives a quarter of the normalised maps from centred patches and a one.

        The mean of four is their sum after ReLU if all are divided by four before.

        Args:
            together: [N, 9 C, 9 C], how the numbers of an image's patches vary together.
        """
        conv, norm = self.parts
        weight = conv.weight.flatten(1)
        deviation = ((weight @ together * weight).sum(2) + norm.eps).rsqrt()
        scaled = weight * (deviation * (norm.weight / 4))[:, :, None]
        return torch.cat([scaled, (norm.bias / 4)[:, None].expand(len(together), -1, 1)], 2)


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(conv.padding, str)
    vertical, horizontal = conv.padding
    return int(vertical), int(horizontal)


def patches(images: torch.Tensor, vertical: int, horizontal: int) -> torch.Tensor:
    """[N, C, H, W] -> [N, 9 C, pixels]: the patch of each pixel; each quarter of the pixels has one of every 2 x 2."""
    padded = functional.pad(images, (horizontal, horizontal, vertical, vertical))
    found = padded.unfold(2, 3, 1).unfold(3, 3, 1)
    number, channels, height, width = found.shape[:4]
    found = found.view(number, channels, height // 2, 2, width // 2, 2, 3, 3).permute(0, 1, 6, 7, 3, 5, 2, 4)
    return found.reshape(number, 9 * channels, height * width)


class Pooled(torch.autograd.Function):
    """[N, 4, ...] -> [N, ...]: the sum over the four of what ReLU leaves. The input is overwritten."""

    generate_vmap_rule = True

    @staticmethod
    def forward(quarters: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return quarters.relu_().sum(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what ReLU has left."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, by_sum: torch.Tensor) -> Any:
        """By the four."""
        return _Spread.apply(by_sum, *ctx.saved_tensors)  # type: ignore[no-untyped-call]


class _Spread(torch.autograd.Function):
    """The gradient of `Pooled`, linear in what comes to it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(given: torch.Tensor, rectified: torch.Tensor) -> torch.Tensor:
        return _passed(given[:, None].expand(rectified.shape), rectified)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, by_spread: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _passed(by_spread, *ctx.saved_tensors).sum(1), None


def _passed(given: torch.Tensor, rectified: torch.Tensor) -> torch.Tensor:
    """What ReLU lets back."""
    found: torch.Tensor = torch.ops.aten.threshold_backward(given, rectified, 0)
    return found


def normalised(rows: torch.Tensor, eps: float) -> torch.Tensor:
    """Rows [N, pixels, channels] with mean 0 and deviation 1 over the pixels, fast up to the second derivative."""
    found: torch.Tensor = Normalised.apply(rows, eps)[0]  # type: ignore[no-untyped-call]
    return found


def _normalised(rows: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and the inverse of the deviation [N, 1, channels]."""
    centred = rows - _mean(rows)
    inverse = (_mean(centred.square()) + eps).rsqrt()
    return centred * inverse, inverse


class Normalised(torch.autograd.Function):
    """See `normalised`.

    With x the rows, y the result, r the inverse deviation and means over the pixels, the gradient of <y, g> by x is
    r (g - mean(g) - y mean(g y)).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        """See `_normalised`."""
        return _normalised(rows, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what the gradient is made of."""
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], *output)
        ctx.eps = inputs[1]

    @staticmethod
    def backward(ctx: Any, by_normalised: torch.Tensor, _: Any) -> tuple[Any, None]:
        """By the rows, differentiable in the rows and in what comes."""
        return _Pulled.apply(by_normalised, *ctx.saved_tensors, ctx.eps), None  # type: ignore[no-untyped-call]


class _Pulled(torch.autograd.Function):
    """The gradient of `Normalised`.

    With v what comes to it, a = mean(g y), b = mean(v y) and c = mean(v g) - mean(v) mean(g) - a b, the gradient by x
    of <v, its result> is -r^2 (b g + a v + (c - 2 a b) y - b mean(g) - a mean(v)). By g it is the same function of v.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        given: torch.Tensor, rows: torch.Tensor, found: torch.Tensor, inverse: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return _pulled(given, found, inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.eps = inputs[4]

    @staticmethod
    def backward(ctx: Any, by_pulled: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None, None, None]:
        given, rows, found, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # for further derivatives both must be seen as what they are of the rows
            found, inverse = _normalised(rows, ctx.eps)
        by_given = _pulled(by_pulled, found, inverse) if ctx.needs_input_grad[0] else None
        a, b = _mean(given * found), _mean(by_pulled * found)
        mean, other = _mean(given), _mean(by_pulled)
        c = _mean(given * by_pulled) - mean * other - a * b
        scale = -inverse.square()
        by_rows = torch.addcmul(-scale * (b * mean + a * other), given, scale * b)
        by_rows = torch.addcmul(by_rows, by_pulled, scale * a)
        by_rows = torch.addcmul(by_rows, found, scale * (c - 2 * a * b))
        return by_given, by_rows, None, None, None


def _pulled(given: torch.Tensor, found: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    scaled = torch.addcmul(-inverse * _mean(given), given, inverse)
    return torch.addcmul(scaled, found, -inverse * _mean(given * found))


def _mean(rows: torch.Tensor) -> torch.Tensor:
    return rows.mean(1, keepdim=True)
