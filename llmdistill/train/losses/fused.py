"""From hidden states to a loss and its gradients, a chunk of target positions at a time.

A chunk's logits live only while it is worked on: its gradient with respect to the hidden states and the output layer
is computed in the forward pass (as Liger's fused cross-entropy does, arXiv 2410.10989), so no [targets, vocabulary]
tensor is ever held. The backward pass only scales. Each chunk costs three matrix products, as without chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from llmdistill.signals.distributions import Head
from llmdistill.train.losses.dense import in_float

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Logits of a chunk, by kind of device: enough rows for the matrix products to run at full speed."""

LEAST_ROWS = 192
"""Targets in a chunk at least: each adds a gradient of the whole output layer, which must not outweigh its products."""

VOCABULARY_BLOCK = 16_384
"""Rows of a weight gradient computed at once where it is summed in another dtype than it is computed in."""

Work = Callable[["Tensor", int, int, bool], "tuple[Tensor, Tensor | None, Tensor | None]"]
"""(logits, start, stop, with gradient) -> (total, soft, hard) of the targets start to stop.

`logits` are float32 or float64 and may be overwritten; with gradient they are, by d(total)/d(logits).
"""


def chunk_rows(vocab_size: int, device: torch.device, tensors: int = 1) -> int:
    """Targets in a chunk.

    Args:
        tensors: how many float32 tensors as large as the logits its work holds at once.
    """
    return max(LEAST_ROWS, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // (4 * vocab_size * tensors))


def chunked_loss(hidden: Tensor, head: Head, work: Work, rows: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sum of a loss over all targets, with gradient for `hidden` and the head's weight and bias.

    Where no gradient is wanted none is computed. Its gradient can be asked for once: `retain_graph` has no use.

    Args:
        hidden: [targets, hidden size].
        head: the output layer.
        work: the loss of a chunk.
        rows: targets in a chunk.

    Returns:
        Total, a scalar; soft and hard, [targets] without gradient, or None.
    """
    inputs = (hidden, head.weight, head.bias)
    if not torch.is_grad_enabled() or not any(tensor is not None and tensor.requires_grad for tensor in inputs):
        total, soft, hard, _ = _run(hidden, head, work, rows, (False, False, False))
        return total, soft, hard
    apply: Any = _Fused.apply
    total, soft, hard = apply(*inputs, head.scale, head.softcap, work, rows)
    return total, soft, hard


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        softcap: float | None,
        work: Work,
        rows: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        wanted = ctx.needs_input_grad[:3]
        total, soft, hard, ctx.sums = _run(hidden, Head(weight, bias, scale, softcap), work, rows, wanted)
        ctx.mark_non_differentiable(*(values for values in (soft, hard) if values is not None))
        ctx.set_materialize_grads(False)
        return total, soft, hard

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 7
        if ctx.sums is None:
            raise RuntimeError("the gradient of a fused loss can be computed only once")
        # Nothing else may hold the sums: autograd then takes them as gradients without a copy.
        sums, ctx.sums = ctx.sums, None
        return (*(_scaled(sums.pop(0), gradient) for _ in range(3)), None, None, None, None)


def _scaled(values: Tensor | None, factor: Tensor) -> Tensor | None:
    if values is None or (factor.device.type == "cpu" and factor.item() == 1.0):
        return values
    return values.mul_(factor)


def _run(
    hidden: Tensor, head: Head, work: Work, rows: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, list[Tensor | None]]:
    """Total, soft, hard, and the gradients of hidden, weight and bias, each in its tensor's dtype."""
    dtype = _computed_in(head.weight)
    with torch.autocast(hidden.device.type, enabled=False):
        used = _cast(head, dtype)
        sums = _Sums(hidden, used, wanted)
        room = hidden.new_empty(min(rows, len(hidden)), len(used.weight), dtype=dtype)
        total = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
        softs, hards = [], []
        for start in range(0, max(len(hidden), 1), rows):
            stop = min(start + rows, len(hidden))
            own = hidden[start:stop].to(dtype)
            logits, slope = _logits(own, used, room[: stop - start], any(wanted))
            part, soft, hard = work(logits, start, stop, any(wanted))
            total += part
            softs.append(soft)
            hards.append(hard)
            if any(wanted):
                gradient = logits if slope is None else logits.mul_(slope)
                if gradient.dtype != dtype:
                    gradient = room[: stop - start].copy_(gradient)
                sums.add(gradient, own, start)
        return total, _joined(softs), _joined(hards), sums.finished(head)


def _computed_in(weight: Tensor) -> torch.dtype:
    """The dtype of the matrix products: autocast's, which leaves float64 alone, or the weight's."""
    kind = weight.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def _cast(head: Head, dtype: torch.dtype) -> Head:
    bias = None if head.bias is None else head.bias.to(dtype)
    return Head(head.weight.to(dtype), bias, head.scale, head.softcap)


def _logits(own: Tensor, head: Head, room: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | float | None]:
    """Logits of a chunk, and d(logits)/d(matrix product), None where it is 1."""
    if head.bias is None:
        torch.mm(own, head.weight.t(), out=room)
    else:
        torch.addmm(head.bias, own, head.weight.t(), out=room)
    logits = in_float(room)
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is None:
        return logits, None if head.scale == 1.0 else head.scale
    logits.div_(head.softcap).tanh_()
    slope = logits.square().neg_().add_(1.0).mul_(head.scale) if with_gradient else None
    return logits.mul_(head.softcap), slope


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


class _Sums:
    """The gradients of hidden, weight and bias while they are summed; None where none is wanted.

    The weight's are summed in float32: bfloat16 would lose what later chunks add.
    """

    def __init__(self, hidden: Tensor, head: Head, wanted: tuple[bool, bool, bool]) -> None:
        exact = torch.promote_types(head.weight.dtype, torch.float32)
        self.head = head
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.empty_like(head.weight, dtype=exact) if wanted[1] else None
        self.bias = torch.zeros_like(head.bias, dtype=exact) if wanted[2] and head.bias is not None else None

    def add(self, gradient: Tensor, own: Tensor, start: int) -> None:
        """Add a chunk's.

        Args:
            gradient: [tokens, vocabulary], with respect to the matrix product.
            own: [tokens, hidden size].
            start: the chunk's first target.
        """
        if self.hidden is not None:
            room = self.hidden[start : start + len(own)]
            if room.dtype == gradient.dtype:
                torch.mm(gradient, self.head.weight, out=room)
            else:
                room.copy_(gradient @ self.head.weight)
        if self.weight is not None:
            _add_product(self.weight, gradient.t(), own, anew=start == 0)
        if self.bias is not None:
            self.bias += gradient.sum(0, dtype=self.bias.dtype)

    def finished(self, head: Head) -> list[Tensor | None]:
        """In the dtypes of the tensors they belong to."""
        weight = None if self.weight is None else self.weight.to(head.weight.dtype)
        bias = None if self.bias is None or head.bias is None else self.bias.to(head.bias.dtype)
        return [self.hidden, weight, bias]


def _add_product(sums: Tensor, one: Tensor, other: Tensor, anew: bool) -> None:
    """`sums` = `one` @ `other`, added to what is there unless `anew`."""
    if sums.dtype == one.dtype:
        sums.addmm_(one, other, beta=0.0 if anew else 1.0)
    elif sums.device.type == "cuda":
        torch.addmm(sums.zero_() if anew else sums, one, other, out_dtype=sums.dtype, out=sums)
    else:
        for start in range(0, len(sums), VOCABULARY_BLOCK):
            block = slice(start, start + VOCABULARY_BLOCK)
            put = sums[block].copy_ if anew else sums[block].add_
            put(one[block] @ other)
