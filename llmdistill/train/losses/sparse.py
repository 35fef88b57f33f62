"""The same divergences where the teacher is known at a few tokens: the k likeliest, or some that were drawn.

With `TopK` both distributions are compared over k + 1 events: each of the k tokens, and all others together. By the
data processing inequality such a divergence is at most the full one, and with k = vocabulary it is the full one.
The teacher's probabilities are as it was captured, softened by T already; the student's are softened here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llmdistill.errors import ConfigError
from llmdistill.signals.distributions import Samples, TopK
from llmdistill.train.losses.dense import Divergence, in_float

if TYPE_CHECKING:
    import torch

LEAST_TAIL = -24 * math.log(2)
"""The tail's mass is 1 minus the others' and known up to float32's rounding; what seems less counts as 2^-24.
Else KL(q || p) would be infinite wherever a teacher is sure."""


def top_k_divergence(
    student_logits: torch.Tensor, teacher: TopK, divergence: Divergence, temperature: float = 1.0
) -> torch.Tensor:
    """T^2 times a divergence of the k + 1 events.

    Args:
        student_logits: [tokens, vocabulary].
        teacher: at the same tokens.
        divergence: one of `dense.DIVERGENCES`, its own settings bound.
        temperature: T > 0, the one the teacher was captured at.

    Returns:
        [tokens], in the divergence's unit.
    """
    student = student_events(in_float(student_logits) / temperature, teacher)
    known = teacher_events(teacher, student_logits.shape[-1], student.dtype)
    return temperature**2 * divergence(student, known, 1.0)


def teacher_events(teacher: TopK, vocab_size: int, dtype: torch.dtype) -> torch.Tensor:
    """[tokens, k + 1] log-probabilities, the tail's last: -inf where a row has all tokens and so no tail."""
    import torch

    known = teacher.log_probs.to(dtype)
    tail = teacher.tail_log_prob.to(dtype).clamp_min(LEAST_TAIL)
    tail = tail.masked_fill((known > -math.inf).sum(-1) == vocab_size, -math.inf)
    return torch.cat([known, tail[:, None]], -1).log_softmax(-1)


def student_events(logits: torch.Tensor, teacher: TopK) -> torch.Tensor:
    """[tokens, k + 1] log-probabilities of the same events, from [tokens, vocabulary] logits.

    The tail's comes from its own logits: as 1 minus the others' it would have no correct digit once it is small.
    """
    import torch

    among = teacher.log_probs > -math.inf
    none_left = (among.sum(-1) == logits.shape[-1])[:, None]
    log_z = logits.logsumexp(-1, keepdim=True)
    known = (logits.gather(-1, teacher.ids) - log_z).masked_fill(~among, -math.inf)
    # A logsumexp of nothing has no gradient, so a row without others keeps them and drops the result.
    others = logits + dropped(teacher, logits).masked_fill(none_left, 0.0)
    tail = (others.logsumexp(-1, keepdim=True) - log_z).masked_fill(none_left, -math.inf)
    return torch.cat([known, tail], -1)


def dropped(teacher: TopK, logits: torch.Tensor) -> torch.Tensor:
    """[tokens, vocabulary]: -inf at the tokens of a row, 0 elsewhere; added to logits it leaves the tail."""
    import torch

    return torch.zeros_like(logits).scatter_add_(-1, teacher.ids, marks(teacher, logits.dtype))


def marks(teacher: TopK, dtype: torch.dtype) -> torch.Tensor:
    """[tokens, k]: -inf, and 0 where a row is filled up. Added, because a filler's id may be a token's too."""
    import torch

    among = teacher.log_probs > -math.inf
    return torch.zeros_like(teacher.log_probs, dtype=dtype).masked_fill_(among, -math.inf)


def sampled_cross_entropy(student_logits: torch.Tensor, teacher: Samples, temperature: float = 1.0) -> torch.Tensor:
    """-T^2 * sum_i weight_i log q(id_i): forward KL without the teacher's entropy (arXiv 2503.16870).

    Its expectation over the draws is T^2 * (KL(p || q) + H(p)), so its gradient is an unbiased estimate of that of
    `forward_kl`. H(p) is unknown here and constant: the value does not go to 0 for a student that equals its teacher.

    Args:
        student_logits: [tokens, vocabulary].
        teacher: at the same tokens, drawn from the distribution softened by T.
        temperature: T > 0.

    Returns:
        [tokens], in nats.
    """
    logits = in_float(student_logits) / temperature
    log_q = logits.gather(-1, teacher.ids) - logits.logsumexp(-1, keepdim=True)
    return -(temperature**2) * (teacher.weights * log_q.masked_fill(teacher.weights == 0, 0.0)).sum(-1)


def check_sampled(divergence: str) -> None:
    """Raise `ConfigError` for a divergence that draws give no unbiased estimate of.

    An expectation over the teacher can be estimated from draws, which forward KL is up to a constant. All
    others need the teacher's probability itself, inside a logarithm or an absolute value.
    """
    if divergence != "forward_kl":
        raise ConfigError(
            f"{divergence} cannot be estimated without bias from draws of the teacher",
            where="train.divergence",
            do="use forward_kl, or signals.mode: topk",
        )
