"""The exact tokens a student is trained on, for a person to look at."""

from __future__ import annotations

from typing import Any

from llmdistill.config import Pipeline
from llmdistill.engines.examples import Unusable, encode
from llmdistill.engines.models import end_tokens_of, load_tokenizer
from llmdistill.engines.resume import student_source
from llmdistill.record import from_row


def previews(rows: list[dict[str, Any]], pipeline: Pipeline) -> list[dict[str, Any]]:
    """Records as tokens, each with whether it is trained; or the problem that keeps a record from being trained."""
    source = student_source(pipeline)
    tokenizer = load_tokenizer(source)
    ends = end_tokens_of(source, tokenizer)
    return [_preview(row, tokenizer, ends, pipeline.train.max_length) for row in rows]


def _preview(row: dict[str, Any], tokenizer: Any, ends: list[int], max_length: int) -> dict[str, Any]:
    example = encode(from_row(row), tokenizer, ends, max_length)
    if isinstance(example, Unusable):
        return {"id": row["id"], "problem": f"{example.reason}: {example.detail}"}
    ids = [(token, False) for token in example.prompt] + [(token, True) for token in example.target]
    tokens = [{"id": token, "text": tokenizer.decode([token]), "trained": trained} for token, trained in ids]
    end = "trained" if example.target[-1] in ends else "missing"
    return {"id": row["id"], "tokens": tokens, "num_trained": len(example.target), "end": end}
