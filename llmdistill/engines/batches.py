"""Examples as one batch, padded or packed, whose target positions come out flat.

Everything that is trained or captured sees `[targets, ...]` tensors in the order of the examples,
so a loss does not know whether the batch was padded or packed:

    padded   p1 p2 t1 t2 t3 pad     packed   p1 p2 t1 t2 t3 q1 u1 u2
             q1 u1 u2 pad pad pad

In a packed batch the positions begin anew with each example and there is no attention mask;
transformers then keeps the examples from seeing each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmdistill.engines.examples import Example

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Batch:
    """Tensors of one batch.

    Attributes:
        input_ids: [rows, width] token ids; the last target token is not fed, nothing follows it.
        position_ids: [rows, width], counted from each example's first token.
        attention_mask: [rows, width], 1 where there is a token; None in a packed batch.
        places: [targets] of rows * width: the position whose output predicts each target.
        labels: [targets] token ids to predict.
        record_ids: the examples, in their order.
        num_targets: how many of the targets belong to each example.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    places: torch.Tensor
    labels: torch.Tensor
    record_ids: tuple[str, ...]
    num_targets: tuple[int, ...]

    def to(self, device: str | torch.device, **_: object) -> Batch:
        """The batch on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            attention_mask=None if self.attention_mask is None else self.attention_mask.to(device),
            places=self.places.to(device),
            labels=self.labels.to(device),
        )

    def record_of(self, target: int) -> str:
        """The example that a target, counted over the batch, belongs to."""
        for record_id, number in zip(self.record_ids, self.num_targets, strict=True):
            if target < number:
                return record_id
            target -= number
        raise IndexError(target)


def pad(examples: Sequence[Example], pad_id: int) -> Batch:
    """One example a row, padded on the right."""
    import torch

    fed = [_fed(example) for example in examples]
    width = max(map(len, fed))
    ids = torch.full((len(fed), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(fed):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = 1
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    return _batch(examples, ids, positions, mask, [row * width for row in range(len(fed))])


def pack(examples: Sequence[Example]) -> Batch:
    """All examples one after the other in a single row, none of which sees another."""
    import torch

    fed = [_fed(example) for example in examples]
    ids = torch.tensor([[token for tokens in fed for token in tokens]], dtype=torch.long)
    positions = torch.cat([torch.arange(len(tokens)) for tokens in fed])[None]
    starts = [0]
    for tokens in fed[:-1]:
        starts.append(starts[-1] + len(tokens))
    return _batch(examples, ids, positions, None, starts)


def _fed(example: Example) -> list[int]:
    return [*example.prompt, *example.target[:-1]]


def _batch(
    examples: Sequence[Example],
    ids: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor | None,
    starts: list[int],
) -> Batch:
    import torch

    first = [start + len(example.prompt) - 1 for start, example in zip(starts, examples, strict=True)]
    lengths = [len(example.target) for example in examples]
    places = torch.cat([torch.arange(at, at + length) for at, length in zip(first, lengths, strict=True)])
    labels = torch.tensor([token for example in examples for token in example.target], dtype=torch.long)
    record_ids = tuple(example.record_id for example in examples)
    return Batch(ids, positions, mask, places, labels, record_ids, tuple(lengths))


def target_hidden(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The last hidden states (after the final norm) at the positions that predict targets: [targets, hidden size]."""
    out = model.get_decoder()(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    )
    return out.last_hidden_state.flatten(0, 1)[batch.places]
