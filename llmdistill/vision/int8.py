"""Networks in int8: layers that learn to stand it, and layers that really compute in it.

Integers as in Jacob et al. (arXiv 1712.05877): weights -127..127 with one scale for each output channel and no offset,
a layer's inputs 0..255 with one scale and one offset, sums in int32, the result float again. Batch norms are folded
into the convolution before them (section 3.2). All 2d convolutions and linear layers take part, whatever the rest of
the network is; the rest stays float.

The kernels are oneDNN's, called as PyTorch's own compiler calls them. `torch.ao.quantization` and quantised tensors,
which would be the other way, are announced to be removed from PyTorch; torchao's export needs a C++ compiler and a
minute for each network.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from llmdistill.errors import ConfigError
from llmdistill.vision.models import evaluating
from llmdistill.vision.trace import called, graph_of, num_calls

_INPUTS, _WEIGHTS = 255, 127
_LEAST_SCALE = 1e-8
_PACE = 0.1
"""Share of the moving range of inputs that a new batch has."""


def _float_out(relu: bool) -> tuple[Any, ...]:
    """Last arguments of the kernels: the result in float, through a ReLU or not."""
    return 1.0, 0, torch.float32, "relu" if relu else "none", [], ""


class InputRange(nn.Module):
    """Rounds a layer's inputs as int8 would; the gradient goes through where they are inside of the range.

    The range follows batches while the module is in training mode and not `frozen`. It always holds 0, so that the
    zeros around an image are exact.
    """

    low: torch.Tensor
    high: torch.Tensor
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.frozen = False
        for name in ("low", "high"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape -> the same."""
        if self.training and not self.frozen:
            self._follow(x.detach())
        return torch.fake_quantize_per_tensor_affine(x, *self.scale_and_zero(), 0, _INPUTS)

    def _follow(self, x: torch.Tensor) -> None:
        pace = torch.where(self.seen, _PACE, 1.0)
        self.low += pace * (x.min().clamp_max(0) - self.low)
        self.high += pace * (x.max().clamp_min(0) - self.high)
        self.seen.fill_(True)

    def scale_and_zero(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The step between two integers, and the one that stands for 0.0."""
        scale = ((self.high - self.low) / _INPUTS).clamp_min(_LEAST_SCALE)
        return scale, (-self.low / scale).round().clamp(0, _INPUTS).to(torch.int32)


def _weight_scale(weight: torch.Tensor) -> torch.Tensor:
    """[outputs, ...] -> [outputs]."""
    return (weight.detach().flatten(1).abs().amax(1) / _WEIGHTS).clamp_min(_LEAST_SCALE)


class FakeQuantised(nn.Module):
    """A layer that computes in float with what int8 leaves of its inputs and weights (section 3 of the paper).

    Args:
        relu: its result goes through a ReLU.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, relu: bool) -> None:
        super().__init__()
        self.layer, self.inputs, self.relu = layer, InputRange(), relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the layer's, and the ReLU's."""
        weight = self.layer.weight
        scale = _weight_scale(weight)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -_WEIGHTS, _WEIGHTS)
        return _in_float(self.layer, self.inputs(x), rounded, self.relu)


def _in_float(layer: Any, x: torch.Tensor, weight: torch.Tensor, relu: bool) -> torch.Tensor:
    if isinstance(layer, nn.Linear | Int8Linear):
        out = nn.functional.linear(x, weight, layer.bias)
    else:
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        out = nn.functional.conv2d(x, weight, layer.bias, *geometry)
    return out.relu() if relu else out


class _Int8(nn.Module):
    """A layer with int8 weights. Where there are no exact kernels, and where a gradient is wanted, it simulates them.

    Attributes:
        weight: int8 [outputs, ...].
        weight_scale: float [outputs].
        input_scale, input_zero: scalars.
    """

    weight_scale: torch.Tensor
    input_scale: torch.Tensor
    input_zero: torch.Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, inputs: InputRange, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        scale, (input_scale, input_zero) = _weight_scale(layer.weight), inputs.scale_and_zero()
        integers = (layer.weight.detach() / _along(scale, layer.weight)).round().clamp(-_WEIGHTS, _WEIGHTS)
        self.weight = nn.Parameter(integers.to(torch.int8), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("input_scale", input_scale.clone())
        self.register_buffer("input_zero", input_zero.clone())
        self._packed: tuple[Any, ...] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float to float."""
        wanted = torch.is_grad_enabled() and x.requires_grad
        if wanted or x.device.type != "cpu" or x.dtype != torch.float32 or not has_kernels():
            return self._simulated(x)
        if self._packed is None:
            scale, zero = float(self.input_scale), int(self.input_zero)
            self._packed = (
                scale,
                zero,
                self._pack(scale, zero),
                torch.zeros_like(self.weight_scale, dtype=torch.int64),
            )
        scale, zero, weight, zeros = self._packed
        integers = x.mul(1 / scale).add_(zero).round_().clamp_(0, _INPUTS).to(torch.uint8)
        return self._compute(integers, scale, zero, weight, zeros)

    def _simulated(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, self.input_scale, self.input_zero, 0, _INPUTS)
        return _in_float(self, x, self.weight * _along(self.weight_scale, self.weight), self.relu)

    def _pack(self, scale: float, zero: int) -> torch.Tensor:
        raise NotImplementedError

    def _compute(
        self, integers: torch.Tensor, scale: float, zero: int, weight: torch.Tensor, zeros: torch.Tensor
    ) -> torch.Tensor:
        raise NotImplementedError

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*arguments, **named)

    def __getstate__(self) -> dict[str, Any]:
        """Packed weights cannot be copied; they are packed again."""
        return {**self.__dict__, "_packed": None}


def _along(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


class Int8Linear(_Int8):
    """A linear layer in int8."""

    def _pack(self, scale: float, zero: int) -> torch.Tensor:
        return torch.ops.onednn.qlinear_prepack(self.weight, None)

    def _compute(
        self, integers: torch.Tensor, scale: float, zero: int, weight: torch.Tensor, zeros: torch.Tensor
    ) -> torch.Tensor:
        kernel = torch.ops.onednn.qlinear_pointwise
        return kernel(integers, scale, zero, weight, self.weight_scale, zeros, self.bias, *_float_out(self.relu))


class Int8Conv2d(_Int8):
    """A 2d convolution in int8."""

    def __init__(self, layer: nn.Conv2d, inputs: InputRange, relu: bool) -> None:
        super().__init__(layer, inputs, relu)
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation
        self.groups = layer.groups

    @property
    def _geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups

    def _pack(self, scale: float, zero: int) -> torch.Tensor:
        return torch.ops.onednn.qconv_prepack(self.weight, self.weight_scale, scale, zero, *self._geometry)

    def _compute(
        self, integers: torch.Tensor, scale: float, zero: int, weight: torch.Tensor, zeros: torch.Tensor
    ) -> torch.Tensor:
        kernel = torch.ops.onednn.qconv2d_pointwise
        scales = (self.weight_scale, zeros)
        return kernel(integers, scale, zero, weight, *scales, self.bias, *self._geometry, *_float_out(self.relu))


@functools.cache
def has_kernels() -> bool:
    """Whether this machine has int8 kernels that add exactly; before VNNI, sums of two products end at 16 bits."""
    integers = torch.full((1, 64, 1, 1), _INPUTS, dtype=torch.uint8)
    weight, ones = torch.full((16, 64, 1, 1), _WEIGHTS, dtype=torch.int8), torch.ones(16)
    zeros = torch.zeros(16, dtype=torch.int64)
    geometry = ([1, 1], [0, 0], [1, 1], 1)
    ops = torch.ops.onednn
    try:
        packed = ops.qconv_prepack(weight, ones, 1.0, 0, *geometry)
        sums = ops.qconv2d_pointwise(integers, 1.0, 0, packed, ones, zeros, None, *geometry, *_float_out(False))
        packed = ops.qlinear_prepack(weight.flatten(1), None)
        more = ops.qlinear_pointwise(integers.flatten(1), 1.0, 0, packed, ones, zeros, None, *_float_out(False))
    except (RuntimeError, AttributeError, TypeError):  # not built with oneDNN, or of another version
        return False
    right = _INPUTS * _WEIGHTS * 64
    return bool((sums == right).all() and (more == right).all())


def quantisable(module: nn.Module) -> bool:
    """Whether a layer can be one in int8; a subclass may compute something of its own."""
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def fold_norms(net: nn.Module) -> None:
    """Put each batch norm into the convolution whose output only it reads; `Identity` stands where it was."""
    graph = graph_of(net)
    if graph is None:
        return
    calls = num_calls(net, graph)
    for node in graph.nodes:
        norm, before = called(net, node), node.args[0] if node.args else None
        conv = called(net, before) if isinstance(before, torch.fx.Node) and len(before.users) == 1 else None
        if type(norm) is nn.BatchNorm2d and type(conv) is nn.Conv2d and calls[conv] == calls[norm] == 1:
            if norm.running_mean is not None:
                _fold(conv, norm)
                net.set_submodule(str(node.target), nn.Identity())


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    folded = fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias)
    conv.weight, conv.bias = folded


def absorb_relus(net: nn.Module) -> set[nn.Module]:
    """The layers whose output only a ReLU reads; `Identity` stands where those ReLUs were."""
    graph, found = graph_of(net), set[nn.Module]()
    if graph is None:
        return found
    calls = num_calls(net, graph)
    for node in graph.nodes:
        if type(called(net, node)) is not nn.ReLU or calls[called(net, node)] > 1:
            continue
        before = node.args[0]
        while isinstance(before, torch.fx.Node) and type(called(net, before)) is nn.Identity and len(before.users) == 1:
            before = before.args[0]
        layer = called(net, before) if isinstance(before, torch.fx.Node) and len(before.users) == 1 else None
        if layer is not None and quantisable(layer) and calls[layer] == 1:
            found.add(layer)
            net.set_submodule(str(node.target), nn.Identity())
    return found


def _replace(net: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace modules inside of a network by what `change` makes of them; None leaves one as it is.

    A module that stands in several places is replaced by one module in all of them.
    """
    made: dict[nn.Module, nn.Module] = {}
    for name, module in list(net.named_modules(remove_duplicate=False))[1:]:
        new = made.get(module) or change(module)
        if new is not None:
            made[module] = new
            net.set_submodule(name, new)


def fake_quantised(net: nn.Module) -> nn.Module:
    """A copy that trains as int8 will compute: its norms are folded and its layers are `FakeQuantised`.

    Raises:
        ConfigError: it has no layer that int8 is for.
    """
    net = copy.deepcopy(net)
    fold_norms(net)
    relus = absorb_relus(net)
    _replace(net, lambda module: FakeQuantised(module, module in relus) if quantisable(module) else None)  # type: ignore[arg-type]
    if not any(isinstance(module, FakeQuantised) for module in net.modules()):
        raise ConfigError("this network has no 2d convolution or linear layer inside of it to compute in int8")
    return net


def freeze_ranges(net: nn.Module, frozen: bool) -> None:
    """Whether the ranges of inputs stay as they are from now on."""
    for module in net.modules():
        if isinstance(module, InputRange):
            module.frozen = frozen


def calibrate(net: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Let a fake-quantised network's ranges follow batches of images; everything else is in evaluation mode."""
    with evaluating(net), torch.no_grad():
        for module in net.modules():
            if isinstance(module, InputRange):
                module.train()
        for images in batches:
            net(images)


def converted(net: nn.Module) -> nn.Module:
    """A copy of a fake-quantised network that computes in int8."""
    net = copy.deepcopy(net)
    _replace(net, lambda module: _int8(module) if isinstance(module, FakeQuantised) else None)
    return net.eval()


def _int8(fake: FakeQuantised) -> nn.Module:
    layer = fake.layer
    kind = Int8Linear if isinstance(layer, nn.Linear) else Int8Conv2d
    return kind(layer, fake.inputs, fake.relu)  # type: ignore[arg-type]


def is_int8(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether these are the weights of an int8 network."""
    return any(name.endswith(".input_scale") for name in tensors)
