"""What the teacher knows at every target position of given texts, computed by transformers.

One forward pass a batch, then the output layer in chunks of target positions, so that no [targets, vocabulary]
tensor is held. What is drawn depends on the seed and the record alone, not on the batch the record was in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from llmdistill.config import Signals
from llmdistill.engines.batches import Batch, pad, target_hidden
from llmdistill.engines.examples import Example
from llmdistill.signals.codec import Array, DrawnRows, Rows, TopRows
from llmdistill.signals.distributions import Head, head_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_CHUNK_LOGITS = 1 << 23
"""Logits held at a time on a CPU: 32 MB, with rows enough to keep its matrix products busy."""

_DEVICE_CHUNK_LOGITS = 1 << 27
"""The same on an accelerator, which wants more rows at once."""

_BLOCK = 128
"""Logits of which only the largest is looked at first; for k = 32 a third of the time of `topk` on a CPU."""


def capture(
    model: PreTrainedModel,
    examples: Sequence[Example],
    settings: Signals,
    vocab_size: int,
    temperature: float,
    seed: int,
    *,
    lay: Callable[[Sequence[Example]], Batch] | None = None,
) -> Iterator[tuple[str, Rows]]:
    """The rows of every example by record id, one batch after the other, longest examples first.

    A batch is under way on an accelerator while the one before it is read.

    Args:
        examples: as the teacher is asked (`Example.as_asked`).
        vocab_size: number of leading ids that both models share; the distribution is that over them alone.
        temperature: what the logits are divided by.
        lay: how examples become a batch; padded, where it is not said.
    """
    if lay is None:
        lay = _padded
    head = _shared_head(model, vocab_size)
    waiting: _UnderWay | None = None
    for batch in map(lay, batches_of(examples, settings.batch_tokens)):
        begun = _begin(model, head, batch, settings, temperature, seed)
        if waiting is not None:
            yield from waiting.rows()
        waiting = begun
    if waiting is not None:
        yield from waiting.rows()


def batches_of(examples: Iterable[Example], num_tokens: int) -> Iterator[list[Example]]:
    """Examples of like length, the longest first, in batches of at most so many tokens with the padding."""
    batch: list[Example] = []
    for example in sorted(examples, key=by_length):
        if batch and (len(batch) + 1) * length_of(batch[0]) > num_tokens:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def length_of(example: Example) -> int:
    """Tokens that the model reads; the last of the target is not fed."""
    return len(example.prompt) + len(example.target) - 1


def by_length(example: Example) -> tuple[int, str]:
    """Sort key: the longest first, so that a lack of memory shows at once."""
    return -length_of(example), example.record_id


def _padded(examples: Sequence[Example]) -> Batch:
    return pad(examples, pad_id=0)  # masked, so any id will do


def _shared_head(model: PreTrainedModel, vocab_size: int) -> Head:
    head = head_of(model)
    bias = None if head.bias is None else head.bias[:vocab_size]
    return replace(head, weight=head.weight[:vocab_size], bias=bias)


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """Results of a batch, still on the model's device: `parts` is (ids, log_probs, tail) or (drawn ids,)."""

    batch: Batch
    parts: tuple[torch.Tensor, ...]

    def rows(self) -> Iterator[tuple[str, Rows]]:
        """The rows of each of its records."""
        arrays = [part.cpu().numpy() for part in self.parts]
        start = 0
        for record_id, number in zip(self.batch.record_ids, self.batch.num_targets, strict=True):
            own = [array[start : start + number] for array in arrays]
            yield record_id, TopRows(*own) if len(own) > 1 else counted(own[0])
            start += number


def _begin(
    model: PreTrainedModel, head: Head, batch: Batch, settings: Signals, temperature: float, seed: int
) -> _UnderWay:
    import torch

    with torch.inference_mode():
        hidden = target_hidden(model, batch.to(model.device))
        most = _CHUNK_LOGITS if hidden.device.type == "cpu" else _DEVICE_CHUNK_LOGITS
        pieces = torch.split(hidden, max(1, most // head.weight.shape[0]))
        logits = (_softened(head, piece, temperature) for piece in pieces)
        found: list[tuple[torch.Tensor, ...]]
        if settings.mode == "topk":
            found = [top(chunk, settings.k) for chunk in logits]
        else:
            points = torch.from_numpy(_points(batch, settings.draws, seed)).to(hidden.device)
            found = [(draw(*pair),) for pair in zip(logits, torch.split(points, len(pieces[0])), strict=True)]
        return _UnderWay(batch, tuple(torch.cat(column) for column in zip(*found, strict=True)))


def _softened(head: Head, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
    """[tokens, vocabulary] float32 logits over the temperature, which nothing else refers to."""
    logits = head.logits(hidden).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def top(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k likeliest ids, their log-probabilities, and the log-probability of all others together.

    The mass of the others is summed up as it is, not as what the likeliest leave of 1, which would cancel.

    Args:
        logits: [tokens, vocabulary] float32; written over.

    Returns:
        [tokens, k] int64, [tokens, k] float32, [tokens] float32.
    """
    values, ids = _largest(logits, min(k, logits.shape[1]))
    highest = values[:, :1].clone()
    others = logits.scatter_(1, ids, -float("inf")).sub_(highest).exp_().sum(-1).log()
    values = values - highest
    total = values.logsumexp(-1).logaddexp(others)
    return ids, values - total[:, None], others - total


def _largest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`logits.topk(k)`: the k largest are in the k blocks whose largest are largest, or behind the last block."""
    import torch

    num_blocks = logits.shape[1] // _BLOCK
    if num_blocks < 2 * k:
        values, ids = logits.topk(k)
        return values, ids
    blocks = torch.unflatten(logits[:, : num_blocks * _BLOCK], 1, (num_blocks, _BLOCK))
    chosen = blocks.amax(-1).topk(k, sorted=False).indices
    found = blocks.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    values, places = torch.cat([found, logits[:, num_blocks * _BLOCK :]], 1).topk(k)
    inside = places < k * _BLOCK
    block = chosen.gather(1, (places // _BLOCK).clamp_max(k - 1))
    behind = places - k * _BLOCK + num_blocks * _BLOCK
    return values, torch.where(inside, block * _BLOCK + places % _BLOCK, behind)


def draw(logits: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Ids drawn with replacement: where the cumulated distribution passes each point.

    Args:
        logits: [tokens, vocabulary] float32; written over.
        points: [tokens, draws] float64, uniform in [0, 1).

    Returns:
        [tokens, draws] int64.
    """
    import torch

    weights = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    cumulated = weights.cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(cumulated, points * cumulated[:, -1:], right=True)
    return found.clamp_max_(logits.shape[1] - 1)


def _points(batch: Batch, draws: int, seed: int) -> Array:
    """[targets, draws] float64, uniform in [0, 1), each record's from a generator of its own."""
    named = zip(batch.record_ids, batch.num_targets, strict=True)
    return np.concatenate([_generator(record_id, seed).random((number, draws)) for record_id, number in named])


def _generator(record_id: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{record_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def counted(drawn: Array) -> DrawnRows:
    """How often each token was drawn.

    Args:
        drawn: [targets, draws] ids in any order.
    """
    ids = np.sort(drawn, axis=1)
    is_new = np.ones(ids.shape, bool)
    is_new[:, 1:] = ids[:, 1:] != ids[:, :-1]
    place = is_new.cumsum(1) - 1
    shape = (len(ids), int(place.max(initial=0)) + 1)
    distinct, counts = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    rows = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    distinct[rows, place] = ids
    np.add.at(counts, (rows, place), 1)
    return DrawnRows(distinct, counts)
