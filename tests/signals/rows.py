"""Rows of a teacher that is not there, and headers for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from llmdistill.signals.codec import DrawnRows, TopRows
from llmdistill.signals.header import Header
from llmdistill.signals.store import Stored, to_stored

HEADER = Header(
    teacher="teacher",
    teacher_revision="local:0123456789abcdef",
    tokenizer_sha256="a" * 64,
    chat_template_sha256="b" * 64,
    teacher_template_sha256="c" * 64,
    vocab_size=600,
    mode="topk",
    k=4,
    draws=50,
    log_probs="uint8",
    temperature=1.0,
    seed=7,
)


def header(**changes: Any) -> Header:
    """`HEADER` with some fields changed."""
    return replace(HEADER, **changes)


def distributions(num_targets: int, vocab_size: int, seed: int = 0, spread: float = 3.0) -> np.ndarray:
    """[targets, vocabulary] float64 log-probabilities; the larger the spread, the more certain the teacher."""
    logits = np.random.default_rng(seed).normal(size=(num_targets, vocab_size)) * spread
    return log_softmax(logits)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def top_rows(log_probs: np.ndarray, k: int) -> TopRows:
    """The k likeliest of [targets, vocabulary] log-probabilities."""
    order = np.argsort(-log_probs, axis=1, kind="stable")
    ids = order[:, :k]
    rest = np.take_along_axis(log_probs, order[:, k:], 1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.exp(rest).sum(1))
    return TopRows(ids, np.take_along_axis(log_probs, ids, 1).astype(np.float32), tail.astype(np.float32))


def drawn_rows(log_probs: np.ndarray, draws: int, seed: int = 0) -> DrawnRows:
    """What is drawn from [targets, vocabulary] log-probabilities."""
    generator = np.random.default_rng(seed)
    found = [generator.multinomial(draws, row / row.sum()) for row in np.exp(log_probs)]
    most = max(int((counts > 0).sum()) for counts in found)
    ids, counts = np.zeros((len(found), most), np.int64), np.zeros((len(found), most), np.int64)
    for place, row in enumerate(found):
        kept = np.flatnonzero(row)
        ids[place, : len(kept)], counts[place, : len(kept)] = kept, row[kept]
    return DrawnRows(ids, counts)


def some_rows(wanted: Header, num_targets: int, seed: int = 0) -> TopRows | DrawnRows:
    """Rows such as a header describes."""
    log_probs = distributions(num_targets, wanted.vocab_size, seed)
    if wanted.mode == "topk":
        return top_rows(log_probs, min(wanted.k, wanted.vocab_size))
    return drawn_rows(log_probs, wanted.draws, seed)


def targets_of(record_ids: list[str], vocab_size: int = 600) -> dict[str, list[int]]:
    """Target ids of some records, of various lengths."""
    generator = np.random.default_rng(0)
    return {name: generator.integers(0, vocab_size, 3 + place % 5).tolist() for place, name in enumerate(record_ids)}


def some_stored(wanted: Header, targets: dict[str, list[int]]) -> list[Stored]:
    """Records ready to be written."""
    rows = {name: some_rows(wanted, len(ids), seed) for seed, (name, ids) in enumerate(targets.items())}
    return to_stored(wanted, targets, rows)
