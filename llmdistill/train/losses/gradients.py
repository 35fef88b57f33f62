"""Gradients of the losses that training uses most, in closed form and in the place of the logits.

Each function overwrites the [tokens, vocabulary] logits of a chunk with d(loss)/d(logits) in as few passes over
them as it can, because at a vocabulary of 150,000 these passes cost as much as what autograd would save. With
q = softmax(logits) and forward KL to p, the gradient is q - p (Hinton et al., arXiv 1503.02531, equation 2).

`soft` and `hard` are factors of the gradient. That of a cross-entropy is hard * (q - label), so a function given
`hard` leaves only the label to subtract. Logits are float32 or float64, divided by T already.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llmdistill.signals.distributions import Samples, TopK
from llmdistill.train.losses.sparse import marks, teacher_events

if TYPE_CHECKING:
    import torch


def softmax_(logits: torch.Tensor) -> torch.Tensor:
    """Softmax in place; returns the logsumexp, [tokens, 1]. The greatest probability is 1 / sum(exp(x - max))."""
    import torch

    highest = logits.amax(-1, keepdim=True)
    torch.softmax(logits, -1, out=logits)
    return highest - logits.amax(-1, keepdim=True).log()


def cross_entropy_(logits: torch.Tensor, labels: torch.Tensor, hard: float) -> torch.Tensor:
    """Leaves hard * (q - label); returns the cross-entropy, [tokens]."""
    picked = logits.gather(-1, labels[:, None])
    log_z = softmax_(logits)
    logits.mul_(hard)
    subtract_labels_(logits, labels, hard)
    return (log_z - picked)[:, 0]


def subtract_labels_(gradient: torch.Tensor, labels: torch.Tensor, hard: float) -> None:
    """Subtracts `hard` at each row's label."""
    import torch

    gradient.scatter_add_(-1, labels[:, None], torch.full_like(labels, -hard, dtype=gradient.dtype)[:, None])


def full_(
    logits: torch.Tensor, teacher_logits: torch.Tensor, soft: float, hard: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward KL to a full distribution: leaves soft * (q - p) + hard * q.

    Args:
        teacher_logits: [tokens, vocabulary], divided by T, overwritten too; -inf is p = 0.

    Returns:
        KL(p || q) and the logsumexp of the logits, both [tokens, 1].
    """
    import torch

    teacher_logits.clamp_(min=torch.finfo(teacher_logits.dtype).min / 4)  # 0 * -inf would be nan
    highest = teacher_logits.amax(-1, keepdim=True)
    p = teacher_logits.softmax(-1)
    teacher_log_z = highest - p.amax(-1, keepdim=True).log()
    apart = teacher_logits.sub_(logits).mul_(p).sum(-1, keepdim=True)
    log_z = softmax_(logits)
    logits.mul_(soft + hard).sub_(p, alpha=soft)
    return apart + log_z - teacher_log_z, log_z


def top_k_(logits: torch.Tensor, teacher: TopK, soft: float, hard: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward KL over the k + 1 events of `sparse`: leaves soft * (q - p) + hard * q, where p of a token in the tail
    is the tail's p in proportion to q.

    Returns:
        The divergence and the logsumexp of the logits, both [tokens, 1].
    """
    import torch

    events = teacher_events(teacher, logits.shape[-1], logits.dtype)
    among = teacher.log_probs > -math.inf
    known = logits.gather(-1, teacher.ids).masked_fill(~among, -math.inf)
    logits.scatter_add_(-1, teacher.ids, marks(teacher, logits.dtype))
    log_tail = softmax_(logits)
    if teacher.ids.shape[-1] >= logits.shape[-1]:  # only then can a row be without a tail, whose softmax is nan
        without = events[:, -1:] == -math.inf
        logits.masked_fill_(without, 0.0)
        log_tail = log_tail.masked_fill(without, -math.inf)
    found = torch.cat([known, log_tail], -1)
    log_z = found.logsumexp(-1, keepdim=True)
    found = found - log_z
    p, q = events.exp(), found.exp()
    gradient = (soft + hard) * q - soft * p
    logits.mul_(gradient[:, -1:]).scatter_add_(-1, teacher.ids, gradient[:, :-1])
    return (p * (events - found).masked_fill(p == 0, 0.0)).sum(-1, keepdim=True), log_z


def samples_(logits: torch.Tensor, teacher: Samples, soft: float, hard: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy with draws of the teacher: leaves soft * (q - weights) + hard * q.

    Returns:
        The cross-entropy and the logsumexp of the logits, both [tokens, 1].
    """
    weights = teacher.weights.to(logits.dtype)
    known = logits.gather(-1, teacher.ids)
    log_z = softmax_(logits)
    logits.mul_(soft * weights.sum(-1, keepdim=True) + hard).scatter_add_(-1, teacher.ids, -soft * weights)
    return (weights * (log_z - known).masked_fill(weights == 0, 0.0)).sum(-1, keepdim=True), log_z
