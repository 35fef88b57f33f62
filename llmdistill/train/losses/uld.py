"""Universal logit distillation: a distance of two distributions whose tokens have nothing in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from llmdistill.signals.distributions import Matched


def uld(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """sum_i |p_(i) - q_(i)| of the probabilities in falling order (arXiv 2402.12030, section 3.2).

    It is the Wasserstein-1 distance where every token is as far from every other, the shorter distribution padded
    with zeros. There is no factor T^2: the distance is between probabilities, not between their logarithms.

    Args:
        student_logits: [tokens, vocabulary of the student].
        teacher_logits: [tokens, vocabulary of the teacher], no gradient flows into it.
        temperature: T > 0, softens both.

    Returns:
        [tokens], between 0 and 2, without unit.
    """
    student, teacher = _sorted(student_logits, temperature), _sorted(teacher_logits, temperature)
    both = min(student.shape[-1], teacher.shape[-1])
    apart = (student[..., :both] - teacher[..., :both]).abs().sum(-1)
    return apart + student[..., both:].sum(-1) + teacher[..., both:].sum(-1)


def uld_of_matches(student_logits: torch.Tensor, teacher: Matched, temperature: float = 1.0) -> torch.Tensor:
    """The distance at each of the student's targets, 0 where the teacher has no distribution after the same text.

    Args:
        student_logits: [targets, vocabulary of the student]: all targets, or the chunk that `teacher` is cut to.
        teacher: the teacher's distribution at those targets that have a partner.
    """
    rows = teacher.targets.to(student_logits.device)
    found = uld(student_logits[rows], teacher.logits().to(student_logits.device), temperature)
    return found.new_zeros(len(student_logits)).index_add(0, rows, found)


def _sorted(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    import torch

    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (exact / temperature).softmax(-1).sort(-1, descending=True).values
