"""Divergences in plain Python from their definitions, and teachers to try them with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from llmdistill.signals.distributions import Full, Head, Samples, TopK


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    highest = max(logits)
    powers = [math.exp((logit - highest) / temperature) for logit in logits]
    return [power / math.fsum(powers) for power in powers]


def kl(one: Sequence[float], other: Sequence[float]) -> float:
    if any(a > 0 and b == 0 for a, b in zip(one, other, strict=True)):
        return math.inf
    return math.fsum(a * math.log(a / b) for a, b in zip(one, other, strict=True) if a > 0)


def mixed(one: Sequence[float], other: Sequence[float], share: float) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(one, other, strict=True)]


def slow_adaptive_kl(p: list[float], q: list[float]) -> float:
    gaps, mass = {"head": 0.0, "tail": 0.0}, 0.0
    for a, b in sorted(zip(p, q, strict=True), key=lambda pair: -pair[0]):
        gaps["head" if mass < 0.5 else "tail"] += abs(a - b)
        mass += a
    both = sum(gaps.values())
    return (gaps["head"] * kl(p, q) + gaps["tail"] * kl(q, p)) / both if both else 0.0


def slow(name: str, p: list[float], q: list[float], share: float) -> float:
    """A divergence of the teacher's p and the student's q, `share` being beta or skew."""
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: share * kl(p, mixed(p, q, share)) + (1 - share) * kl(q, mixed(p, q, share)),
        "tvd": lambda: 0.5 * math.fsum(abs(a - b) for a, b in zip(p, q, strict=True)),
        "skew_forward_kl": lambda: kl(p, mixed(p, q, share)),
        "skew_reverse_kl": lambda: kl(q, mixed(q, p, share)),
        "adaptive_kl": lambda: slow_adaptive_kl(p, q),
    }[name]()


def full(num_targets: int, vocab_size: int, rows: int | None = None, dtype: torch.dtype = torch.float64) -> Full:
    """A teacher in memory whose output layer has `rows` ids, of which `vocab_size` are shared."""
    hidden = torch.randn(num_targets, 5, dtype=dtype)
    return Full(hidden, Head(torch.randn(rows or vocab_size, 5, dtype=dtype)), vocab_size)


def top_k(logits: torch.Tensor, k: int, temperature: float = 1.0) -> TopK:
    log_probs = (logits.double() / temperature).log_softmax(-1)
    known, ids = log_probs.topk(k)
    rest = log_probs.scatter(-1, ids, -math.inf)
    return TopK(ids, known.to(logits.dtype), rest.logsumexp(-1).to(logits.dtype))


def draw(logits: torch.Tensor, draws: int, temperature: float = 1.0) -> Samples:
    """Drawn with replacement, equal ids put together, rows filled with id 0 and weight 0."""
    drawn = torch.multinomial((logits / temperature).softmax(-1), draws, replacement=True)
    ids, weights = torch.zeros_like(drawn), torch.zeros(drawn.shape, dtype=logits.dtype)
    for row, tokens in enumerate(drawn):
        distinct, counts = tokens.unique(return_counts=True)
        ids[row, : len(distinct)], weights[row, : len(distinct)] = distinct, counts.to(logits.dtype) / draws
    return Samples(ids, weights)
