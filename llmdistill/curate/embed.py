"""Prompts as vectors of unit length, for telling which are about the same thing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmdistill.engines.models import ModelSource

DIMENSIONS = 64
_BATCH = 16


def tfidf(texts: Sequence[str], seed: int) -> np.ndarray:
    """TF-IDF of character n-grams inside words, reduced by truncated SVD (LSA): [rows, <= 64], float64.

    Needs no model; character n-grams work for Korean, where particles stick to words.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    matrix = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True).fit_transform(texts)
    size = min(DIMENSIONS, matrix.shape[0] - 1, matrix.shape[1] - 1)
    if size < 1:
        return np.ones((len(texts), 1))
    with np.errstate(invalid="ignore"):  # equal texts: sklearn also works out a share of no variance
        return unit(TruncatedSVD(size, random_state=seed).fit_transform(matrix))


def hidden_states(texts: Sequence[str], source: ModelSource) -> np.ndarray:
    """Mean of a language model's last hidden states over the text: [rows, hidden size], float64."""
    import torch

    from llmdistill.engines.aligned import align
    from llmdistill.engines.models import load_model, load_tokenizer

    model, tokenizer = load_model(source), load_tokenizer(source)
    rows = []
    for start in range(0, len(texts), _BATCH):
        ids = [tokenizer.encode(text)[:512] or [tokenizer.eos_token_id] for text in texts[start : start + _BATCH]]
        batch = align(ids, [[]] * len(ids), tokenizer.pad_token_id, model.device)
        with torch.inference_mode():
            out = model.base_model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids
            )
        mask = batch.attention_mask.unsqueeze(-1)
        rows.append((out.last_hidden_state.float() * mask).sum(1) / mask.sum(1))
    vectors = torch.cat(rows).double().cpu().numpy()
    return unit(vectors - vectors.mean(0))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
