"""Divergences of two distributions: pure functions of [tokens, vocabulary] logits, per token, in nats.

Throughout p is the teacher and q the student, both softened by the temperature T; every divergence carries the
factor T^2, which keeps the size of its gradient the same for every T (Hinton et al., arXiv 1503.02531, section 2.1).
No gradient flows into the teacher. They work in float32, or float64 where the logits are. A teacher's logit may be
-inf: its p is 0, which adds nothing to an expectation over p and makes KL(q || p) infinite unless q is 0 there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def forward_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 * KL(p || q) (Hinton et al., arXiv 1503.02531).

    Args:
        student_logits: [tokens, vocabulary].
        teacher_logits: [tokens, vocabulary].
        temperature: T > 0.

    Returns:
        [tokens], in nats, at least 0 up to rounding.
    """
    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    return temperature**2 * _kl(teacher, student)


def reverse_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 * KL(q || p) (MiniLLM, arXiv 2306.08543). Arguments and result as in `forward_kl`."""
    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    return temperature**2 * _kl(student, teacher)


def jsd(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0, beta: float = 0.5
) -> torch.Tensor:
    """T^2 * [beta KL(p || m) + (1 - beta) KL(q || m)] with m = beta p + (1 - beta) q (GKD, arXiv 2306.13649, eq. 1).

    `beta` is the teacher's share. For beta -> 0 it is beta * KL(p || q), for beta -> 1 (1 - beta) * KL(q || p): its
    gradient is smaller than a KL's. Arguments and result otherwise as in `forward_kl`.
    """
    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    mixture = _mixture(teacher, student, beta)
    return temperature**2 * (beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture))


def tvd(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 * 1/2 sum |p - q|, the total variation distance (for distillation: arXiv 2307.15190).

    Without unit, between 0 and T^2. Arguments as in `forward_kl`.
    """
    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    return temperature**2 * 0.5 * (teacher.exp() - student.exp()).abs().sum(-1)


def skew_forward_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0, skew: float = 0.1
) -> torch.Tensor:
    """T^2 * KL(p || skew p + (1 - skew) q) (DistiLLM, arXiv 2402.03898). Otherwise as `forward_kl`."""
    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    return temperature**2 * _kl(teacher, _mixture(teacher, student, skew))


def skew_reverse_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0, skew: float = 0.1
) -> torch.Tensor:
    """T^2 * KL(q || (1 - skew) p + skew q) (DistiLLM, arXiv 2402.03898). Otherwise as `forward_kl`."""
    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    return temperature**2 * _kl(student, _mixture(student, teacher, skew))


def adaptive_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0, head_mass: float = 0.5
) -> torch.Tensor:
    """T^2 * [g_head KL(p || q) + g_tail KL(q || p)] / (g_head + g_tail) (AKL, arXiv 2404.02657).

    g_head is the gap, the sum of |p - q|, over the teacher's likeliest tokens: the fewest whose mass reaches
    `head_mass`; g_tail is the gap over all others. No gradient flows through the two weights.
    Arguments and result otherwise as in `forward_kl`.
    """
    import torch

    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    with torch.no_grad():
        p, order = teacher.exp().sort(stable=True, dim=-1, descending=True)
        gap = (p - student.exp().gather(-1, order)).abs()
        in_head = p.cumsum(-1) - p < head_mass
        head, both = (gap * in_head).sum(-1), gap.sum(-1)
        share = torch.where(both > 0, head / both, 0.5)
    return temperature**2 * (share * _kl(teacher, student) + (1 - share) * _kl(student, teacher))


def cross_entropy(student_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log q(label) at T = 1: [tokens] in nats, from [tokens, vocabulary] logits and [tokens] ids."""
    import torch

    return torch.nn.functional.cross_entropy(in_float(student_logits), labels, reduction="none")


Divergence = Callable[..., "torch.Tensor"]
"""(student_logits, teacher_logits, temperature, ...) -> [tokens]."""

DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "tvd": tvd,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "adaptive_kl": adaptive_kl,
}
"""By the names of `config.Train.divergence`."""


def in_float(logits: torch.Tensor) -> torch.Tensor:
    """In float32, or as they are in float64: bfloat16 has three digits, too few for a sum over a vocabulary."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_probs(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the student and of the teacher in one dtype, without gradient for the teacher."""
    student, teacher = in_float(student_logits), in_float(teacher_logits.detach())
    if teacher.dtype != student.dtype:
        student, teacher = student.double(), teacher.double()
    return (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)


def _kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(one || other) of log-probabilities; where `one` is -inf there is nothing, for its gradient too."""
    return (one.exp() * (one - other).masked_fill(one == -math.inf, 0.0)).sum(-1)


def _mixture(one: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """log(share * one + (1 - share) * other) of log-probabilities; of -inf twice logaddexp's gradient would be nan."""
    import torch

    least = torch.finfo(one.dtype).min / 4
    return torch.logaddexp((one + math.log(share)).clamp_min(least), other + math.log1p(-share))
