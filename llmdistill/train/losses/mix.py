"""The training loss: a divergence from the teacher and a cross-entropy, mixed, from hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from llmdistill.config import Train
from llmdistill.signals.distributions import Distribution, Full, Head
from llmdistill.train.losses.dense import cross_entropy, forward_kl

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Mix:
    """soft_weight * divergence + hard_weight * cross-entropy; the fields are those of `config.Train`."""

    divergence: str = "forward_kl"
    soft_weight: float = 1.0
    hard_weight: float = 0.0
    temperature: float = 1.0
    jsd_beta: float = 0.5
    skew: float = 0.1

    @classmethod
    def of(cls, settings: Train) -> Mix:
        """As the pipeline says; without a teacher (`sft`) the cross-entropy alone."""
        if settings.method == "sft":
            return cls(soft_weight=0.0, hard_weight=1.0)
        names = ("divergence", "soft_weight", "hard_weight", "temperature", "jsd_beta", "skew")
        return cls(**{name: getattr(settings, name) for name in names})


class Terms(NamedTuple):
    """The loss of one batch.

    total: scalar with gradient, the sum over targets of soft_weight * soft + hard_weight * hard.
    soft, hard: [targets], without gradient and unweighted, in nats; None where the weight is 0.
    """

    total: torch.Tensor
    soft: torch.Tensor | None
    hard: torch.Tensor | None


def distillation_loss(
    hidden: torch.Tensor, head: Head, labels: torch.Tensor, teacher: Distribution | None, mix: Mix
) -> Terms:
    """The loss of the student's last hidden states.

    Args:
        hidden: [targets, hidden size] of the student, after its final norm.
        head: the student's output layer.
        labels: [targets] token ids.
        teacher: its distribution at the same targets; None where `soft_weight` is 0.
    """
    logits = head.logits(hidden)
    soft = hard = None
    total = logits.new_zeros((), dtype=logits.dtype)
    if teacher is not None and mix.soft_weight:
        assert isinstance(teacher, Full)
        soft = forward_kl(logits[:, : teacher.vocab_size], teacher.logits(), mix.temperature)
        total = total + mix.soft_weight * soft.sum()
    if mix.hard_weight:
        hard = cross_entropy(logits, labels)
        total = total + mix.hard_weight * hard.sum()
    return Terms(total, None if soft is None else soft.detach(), None if hard is None else hard.detach())
