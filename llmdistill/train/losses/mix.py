"""The training loss: a divergence from the teacher and a cross-entropy, mixed, from hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from llmdistill.config import Train
from llmdistill.signals.distributions import Distribution, Full, Head, Matched, Samples, TopK
from llmdistill.train.losses.dense import DIVERGENCES, Divergence, cross_entropy
from llmdistill.train.losses.sparse import check_sampled, sampled_cross_entropy, top_k_divergence

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
    hidden: torch.Tensor,
    head: Head,
    labels: torch.Tensor,
    teacher: Distribution | None,
    mix: Mix,
    chunk_rows: int | None = None,
) -> Terms:
    """The loss of the student's last hidden states, in chunks of targets (`fused`).

    The divergence is over the ids that both models have, the cross-entropy over all of the student's. With
    `Samples` the soft term lacks the teacher's entropy (`sparse.sampled_cross_entropy`). The total's gradient
    can be asked for once.

    Args:
        hidden: [targets, hidden size] of the student, after its final norm.
        head: the student's output layer.
        labels: [targets] token ids.
        teacher: its distribution at the same targets; None where `soft_weight` is 0.
        chunk_rows: targets worked on at once; None is `fused.chunk_rows`.

    Raises:
        ConfigError: draws of the teacher give no unbiased estimate of this divergence.
    """
    from llmdistill.train.losses import fused

    asked = teacher if mix.soft_weight else None
    if isinstance(asked, Samples):
        check_sampled(mix.divergence)
    closed = asked is None or (mix.divergence == "forward_kl" and isinstance(asked, Full | TopK | Samples))

    def work(
        logits: torch.Tensor, start: int, stop: int, with_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        part = None if asked is None else asked.chunk(start, stop)
        if not with_gradient:
            return naive_terms(logits, labels[start:stop], part, mix)
        run = _closed if closed else _differentiated
        return run(logits, labels[start:stop], part, mix)

    # As large as the logits are the teacher's logits and probabilities too, and about what autograd keeps.
    tensors = 8 if not closed else 3 if isinstance(asked, Full) else 1
    rows = chunk_rows or fused.chunk_rows(len(head.weight), hidden.device, tensors)
    return Terms(*fused.chunked_loss(hidden, head, work, rows))


def naive_terms(logits: torch.Tensor, labels: torch.Tensor, teacher: Distribution | None, mix: Mix) -> Terms:
    """The same of [targets, vocabulary] logits, by the formulas; soft and hard have gradients too."""
    total = logits.new_zeros(())
    soft = hard = None
    if teacher is not None and mix.soft_weight:
        soft = _soft(logits, teacher, mix)
        total = total + mix.soft_weight * soft.sum()
    if mix.hard_weight:
        hard = cross_entropy(logits, labels)
        total = total + mix.hard_weight * hard.sum()
    return Terms(total, soft, hard)


def _soft(logits: torch.Tensor, teacher: Distribution, mix: Mix) -> torch.Tensor:
    shared = _shared(logits, teacher)
    if isinstance(teacher, Full):
        return divergence_of(mix)(shared, teacher.logits(), mix.temperature)
    if isinstance(teacher, TopK):
        return top_k_divergence(shared, teacher, divergence_of(mix), mix.temperature)
    if isinstance(teacher, Samples):
        check_sampled(mix.divergence)
        return sampled_cross_entropy(shared, teacher, mix.temperature)
    from llmdistill.train.losses.uld import uld_of_matches

    return uld_of_matches(logits, teacher, mix.temperature)


def _shared(logits: torch.Tensor, teacher: Distribution) -> torch.Tensor:
    """The logits of the ids that both models have: all, unless the teacher's distribution says how many."""
    known = None if isinstance(teacher, Matched) else teacher.vocab_size
    return logits if known is None else logits[:, :known]


def divergence_of(mix: Mix) -> Divergence:
    """The divergence with its own setting bound."""
    own = {
        "jsd": {"beta": mix.jsd_beta},
        "skew_forward_kl": {"skew": mix.skew},
        "skew_reverse_kl": {"skew": mix.skew},
    }
    return partial(DIVERGENCES[mix.divergence], **own.get(mix.divergence, {}))


def _differentiated(logits: torch.Tensor, labels: torch.Tensor, teacher: Distribution | None, mix: Mix) -> Terms:
    """The terms of a chunk; its gradient by autograd, put in the place of the logits."""
    import torch

    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        total, soft, hard = naive_terms(leaf, labels, teacher, mix)
        (gradient,) = torch.autograd.grad(total, leaf)
    logits.copy_(gradient)
    return Terms(total.detach(), None if soft is None else soft.detach(), None if hard is None else hard.detach())


def _closed(logits: torch.Tensor, labels: torch.Tensor, teacher: Distribution | None, mix: Mix) -> Terms:
    """The terms of a chunk; its gradient in closed form, put in the place of the logits."""
    from llmdistill.train.losses import gradients

    soft = hard = None
    if teacher is None:
        if mix.hard_weight:
            hard = gradients.cross_entropy_(logits, labels, mix.hard_weight)
    elif _shares_softmax(logits, teacher, mix):
        picked = logits.gather(-1, labels[:, None]) if mix.hard_weight else None
        soft, log_z = _closed_soft(_softened(logits, mix), teacher, mix, mix.hard_weight)
        if picked is not None:
            gradients.subtract_labels_(logits, labels, mix.hard_weight)
            hard = (log_z - picked)[:, 0]
    else:
        softened = _shared(logits, teacher) / mix.temperature
        soft, _ = _closed_soft(softened, teacher, mix, 0.0)
        hard = gradients.cross_entropy_(logits, labels, mix.hard_weight) if mix.hard_weight else None
        _shared(logits if mix.hard_weight else logits.zero_(), teacher).add_(softened)
    total = logits.new_zeros(())
    if soft is not None:
        total = total + mix.soft_weight * soft.sum()
    if hard is not None:
        total = total + mix.hard_weight * hard.sum()
    return Terms(total, soft, hard)


def _softened(logits: torch.Tensor, mix: Mix) -> torch.Tensor:
    """In place; a division by 1 would be one more pass over the logits."""
    return logits if mix.temperature == 1.0 else logits.div_(mix.temperature)


def _shares_softmax(logits: torch.Tensor, teacher: Distribution, mix: Mix) -> bool:
    """Whether one softmax serves both terms, or only one term is asked for over all of the student's ids."""
    return _shared(logits, teacher).shape == logits.shape and (mix.temperature == 1.0 or not mix.hard_weight)


def _closed_soft(
    logits: torch.Tensor, teacher: Distribution, mix: Mix, hard: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The soft term, [targets], and the logsumexp of the softened logits, [targets, 1]."""
    from llmdistill.train.losses import gradients

    weight = mix.soft_weight * mix.temperature
    if isinstance(teacher, Full):
        softened = teacher.logits().to(logits.dtype).div_(mix.temperature)
        found, log_z = gradients.full_(logits, softened, weight, hard)
    elif isinstance(teacher, TopK):
        found, log_z = gradients.top_k_(logits, teacher, weight, hard)
    else:
        assert isinstance(teacher, Samples)
        found, log_z = gradients.samples_(logits, teacher, weight, hard)
    return mix.temperature**2 * found[:, 0], log_z
