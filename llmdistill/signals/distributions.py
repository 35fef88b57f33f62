"""The forms in which a teacher's distribution is known; a loss takes any of them in chunks of target positions.

All are over T target positions in the order of a batch's targets and are cut with `chunk`. None of them
holds a [targets, vocabulary] tensor: `Full` computes the logits of a chunk when it is asked for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Head:
    """A model's output layer: logits = softcap(scale * (hidden @ weight.T + bias)).

    Attributes:
        weight: [vocabulary, hidden size].
        bias: [vocabulary] or None.
        scale: factor some families apply to the logits.
        softcap: c of c * tanh(logits / c), or None (Gemma, arXiv 2408.00118, section 2).
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[tokens, vocabulary] from [tokens, hidden size], in the weight's dtype."""
        import torch

        found = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            found = found * self.scale
        return found if self.softcap is None else self.softcap * torch.tanh(found / self.softcap)


def head_of(model: PreTrainedModel) -> Head:
    """The output layer of a causal language model, with what its family does to the logits."""
    layer = model.get_output_embeddings()
    config = model.config.get_text_config()
    return Head(
        layer.weight, getattr(layer, "bias", None), _scale_of(config), getattr(config, "final_logit_softcapping", None)
    )


def _scale_of(config: object) -> float:
    """Each family has its own name for the factor, and one divides by it (read from transformers' model code)."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return 1.0
    return float(divisor) if getattr(config, "model_type", "") == "hyperclovax" else 1.0 / float(divisor)


@dataclass(frozen=True)
class Full:
    """The teacher in memory: its hidden states and its output layer.

    Attributes:
        hidden: [targets, hidden size of the teacher].
        head: the teacher's output layer.
        vocab_size: number of leading ids that both models share.
    """

    hidden: torch.Tensor
    head: Head
    vocab_size: int

    def chunk(self, start: int, stop: int) -> Full:
        """Positions `start` to `stop`."""
        return Full(self.hidden[start:stop], self.head, self.vocab_size)

    def logits(self) -> torch.Tensor:
        """[targets, vocab_size], float32, without gradient."""
        import torch

        with torch.no_grad():
            return self.head.logits(self.hidden)[:, : self.vocab_size].float()


@dataclass(frozen=True)
class TopK:
    """The k likeliest tokens and the mass of all others.

    Attributes:
        ids: [targets, k] int64, each at most once in a row.
        log_probs: [targets, k] float32; -inf where a row has fewer than k.
        tail_log_prob: [targets] float32, log of 1 - sum(exp(log_probs)); -inf where nothing is left.
        vocab_size: number of leading ids that both models share; None for all of the student's.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    tail_log_prob: torch.Tensor
    vocab_size: int | None = None

    def chunk(self, start: int, stop: int) -> TopK:
        """Positions `start` to `stop`."""
        part = slice(start, stop)
        return TopK(self.ids[part], self.log_probs[part], self.tail_log_prob[part], self.vocab_size)


@dataclass(frozen=True)
class Samples:
    """Tokens drawn from the teacher with replacement: an unbiased estimate of its distribution (arXiv 2503.16870).

    Attributes:
        ids: [targets, most distinct tokens] int64; rows with fewer are filled with id 0.
        weights: [targets, most distinct tokens] float32, share of the draws, 0 where filled; each row sums to 1.
        vocab_size: number of leading ids that both models share; None for all of the student's.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    vocab_size: int | None = None

    def chunk(self, start: int, stop: int) -> Samples:
        """Positions `start` to `stop`."""
        return Samples(self.ids[start:stop], self.weights[start:stop], self.vocab_size)


@dataclass(frozen=True)
class Matched:
    """The teacher's distribution over its own tokens, at those of the student's targets that have a partner.

    Attributes:
        hidden: [matches, hidden size of the teacher].
        head: the teacher's output layer.
        targets: [matches] int64, rising: the student's target that each row belongs to.
    """

    hidden: torch.Tensor
    head: Head
    targets: torch.Tensor

    def chunk(self, start: int, stop: int) -> Matched:
        """The matches among the student's targets `start` to `stop`, counted from `start`."""
        import torch

        ends = torch.tensor([start, stop], device=self.targets.device)
        first, end = torch.searchsorted(self.targets, ends).tolist()
        return Matched(self.hidden[first:end], self.head, self.targets[first:end] - start)

    def logits(self) -> torch.Tensor:
        """[matches, vocabulary of the teacher], float32, without gradient."""
        import torch

        with torch.no_grad():
            return self.head.logits(self.hidden).float()


Distribution = Full | TopK | Samples | Matched
