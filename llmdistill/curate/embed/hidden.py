"""Mean of a language model's last hidden states over a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmdistill.engines.models import ModelSource, load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 1
"""Changes with what the vectors are."""


class HiddenStates:
    """A model that is loaded once, on the first texts.

    Args:
        max_tokens: what a text has beyond these is not read.
        batch_size: texts at once; those of about equal length are put together.
        device: as in `engines.models.choose_device`.
    """

    def __init__(self, source: ModelSource, max_tokens: int, batch_size: int, device: str) -> None:
        self._source, self._max_tokens, self._batch_size, self._device = source, max_tokens, batch_size, device
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Means of the last hidden states, [texts, hidden size], float32, not of unit length."""
        if self._loaded is None:
            self._loaded = load_model(self._source, device=self._device), load_tokenizer(self._source)
        model, tokenizer = self._loaded
        ids = [tokenizer.encode(text)[: self._max_tokens] or [tokenizer.eos_token_id] for text in texts]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        rows = np.empty((len(ids), model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            rows[batch] = _means(model, [ids[row] for row in batch], tokenizer.pad_token_id)
        return rows


def _means(model: PreTrainedModel, ids: list[list[int]], pad_id: int) -> np.ndarray:
    import torch

    from llmdistill.engines.aligned import align

    batch = align(ids, [[]] * len(ids), pad_id, model.device)
    with torch.inference_mode():
        states = model.base_model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state.float()
        mask = batch.attention_mask.unsqueeze(-1)
        means: np.ndarray = ((states * mask).sum(1) / mask.sum(1)).cpu().numpy()
    return means
