"""Examples as one batch, padded or packed, whose target positions come out flat.

Everything that is trained or captured sees `[targets, ...]` tensors in the order of the examples,
so a loss does not know whether the batch was padded or packed:

    padded   p1 p2 t1 t2 t3 pad     packed   p1 p2 t1 t2 t3 q1 u1 u2
             q1 u1 u2 pad pad pad

In a packed batch the positions begin anew with each example and there is no attention mask; from that,
transformers makes the mask that keeps the examples from seeing each other, or the lengths that flash attention
takes (`find_packed_sequence_indices` in transformers/masking_utils.py). `check_packing` sees that a model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmdistill.engines.examples import Example
from llmdistill.errors import ModelError

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
    return _hidden(model, batch).flatten(0, 1).index_select(0, batch.places)


def _hidden(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    out = model.get_decoder()(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    )
    hidden: torch.Tensor = out.last_hidden_state
    return hidden


PROBE = 4
"""Tokens of each of the two examples that `check_packing` lays end to end."""


def check_packing(model: PreTrainedModel) -> None:
    """See whether a packed example changes with the one before it, as it does in recurrent and convolutional layers.

    Raises:
        ModelError: it does.
    """
    import torch

    device = model.get_input_embeddings().weight.device
    first, other, second = (list(range(start, start + PROBE)) for start in (1, 1 + PROBE, 1 + 2 * PROBE))
    training = model.training
    model.eval()
    with torch.no_grad():
        one, same = (
            _hidden(model, pack([Example("", before, [0]), Example("", second, [0])]).to(device))[0, PROBE:].float()
            for before in (first, other)
        )
    model.train(training)
    if not torch.allclose(one, same, rtol=1e-2, atol=1e-3 * float(one.abs().max()), equal_nan=True):
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        raise ModelError("this model lets packed examples see each other", where=name, do="set train.packing: false")
