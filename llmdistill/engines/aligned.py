"""Prompts and targets as one batch whose target positions stand in the same columns of every row.

Prompts are padded on the left and targets on the right:

    pad pad p1 p2 | t1 t2 t3
    p1  p2  p3 p4 | t1 t2 pad

so the positions that predict targets are the last columns, and only their
logits are computed (`logits_to_keep`), never those of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

IGNORED = -100
"""Label of a position that is not trained or measured."""


@dataclass(frozen=True)
class AlignedBatch:
    """Tensors of one batch.

    Attributes:
        input_ids: [rows, width] token ids; the last target token is not fed, nothing follows it.
        attention_mask: [rows, width], 1 where there is a token.
        position_ids: [rows, width], counted from each row's first token.
        labels: [rows, targets] token to predict, `IGNORED` where a row has none.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor

    @property
    def num_targets(self) -> int:
        """Number of tokens to predict."""
        return int((self.labels != IGNORED).sum())

    def to(self, device: str | torch.device) -> AlignedBatch:
        """The batch on another device."""
        return AlignedBatch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.position_ids.to(device),
            self.labels.to(device),
        )


def align(
    prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], pad_id: int, device: str | torch.device = "cpu"
) -> AlignedBatch:
    """Build a batch from token ids; a row may have no targets, but needs a prompt."""
    import torch

    width = max(len(prompt) for prompt in prompts)
    num_targets = max(len(target) for target in targets)
    fed = max(num_targets - 1, 0)
    ids = torch.full((len(prompts), width + fed), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full((len(prompts), num_targets), IGNORED, dtype=torch.long)
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        tokens = [*prompt, *target[:fed]]
        start = width - len(prompt)
        ids[row, start : start + len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, start : start + len(tokens)] = 1
        labels[row, : len(target)] = torch.tensor(target, dtype=torch.long)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    return AlignedBatch(ids, mask, positions, labels).to(device)


def target_logits(model: PreTrainedModel, batch: AlignedBatch) -> torch.Tensor:
    """The model's logits at the positions that predict targets: [rows, targets, vocabulary]."""
    out = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        logits_to_keep=batch.labels.shape[1],
        use_cache=False,
    )
    return out.logits
