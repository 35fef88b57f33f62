"""Divergences of full distributions: pure functions of [tokens, vocabulary] logits, per token, in nats."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def forward_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 * KL(p_teacher || p_student) with both distributions softened by T (Hinton et al., arXiv 1503.02531).

    The factor T^2 keeps the size of the gradient the same for every T (their section 2.1).

    Args:
        student_logits: [tokens, vocabulary].
        teacher_logits: [tokens, vocabulary], no gradient flows into it.
        temperature: T > 0.

    Returns:
        [tokens], in nats, at least 0 up to rounding.
    """
    teacher = (teacher_logits.float() / temperature).log_softmax(-1)
    student = (student_logits.float() / temperature).log_softmax(-1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1)


def cross_entropy(student_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log p_student(label): [tokens] from [tokens, vocabulary] logits and [tokens] ids, in nats."""
    import torch

    return torch.nn.functional.cross_entropy(student_logits.float(), labels, reduction="none")
