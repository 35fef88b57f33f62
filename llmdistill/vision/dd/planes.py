"""Faster forms of a network's operations on maps on a CPU, for any network, with the same results.

Where every channel of an image lies as one plane, GroupNorm and its gradient take a fifth of what they take in the
channels-last format, which otherwise suits convolutions; average pooling by 2 is slow there, but is a product of rows
with a small matrix (measured with PyTorch 2.13, one thread: `tests/bench/bench_dd.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Planes(TorchFunctionMode):
    """Inside the block, convolutions and average poolings on a CPU go plane by plane; on a GPU nothing changes."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.conv2d and len(args) > 1 and args[0].device.type == "cpu":
            return func(args[0].contiguous(), args[1].contiguous(), *args[2:], **kwargs)
        if func is functional.avg_pool2d and args and args[0].device.type == "cpu" and _halves(*args, **kwargs):
            return _halved(args[0])
        return func(*args, **kwargs)


def _halves(
    maps: torch.Tensor,
    size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> bool:
    """Whether a pooling takes means of 2 x 2 pixels that lie side by side and fill the maps."""
    plain = size in (2, (2, 2)) and stride in (None, 2, (2, 2)) and padding in (0, (0, 0)) and divisor_override is None
    return plain and maps.shape[-2] % 2 == maps.shape[-1] % 2 == 0


def _halved(maps: torch.Tensor) -> torch.Tensor:
    """[..., H, W] -> [..., H / 2, W / 2]: two rows after each other, times the matrix that takes means of four."""
    *batch, height, width = maps.shape
    means = torch.eye(width // 2, dtype=maps.dtype, device=maps.device).repeat_interleave(2, 0).repeat(2, 1) / 4
    return (maps.reshape(*batch, height // 2, 2 * width) @ means).reshape(*batch, height // 2, width // 2)
