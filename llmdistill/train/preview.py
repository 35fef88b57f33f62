"""The exact tokens a student is trained on, for a person to look at."""

from __future__ import annotations

from typing import Any

from llmdistill.config import Pipeline
from llmdistill.engines.models import find_model, load_tokenizer
from llmdistill.engines.resume import find_weights
from llmdistill.record import from_row
from llmdistill.train.examples import Unusable, encode


def previews(rows: list[dict[str, Any]], pipeline: Pipeline) -> list[dict[str, Any]]:
    """Records as tokens, each with whether it is trained; or the problem that keeps a record from being trained."""
    tokenizer, ends = _student_tokenizer(pipeline)
    return [_preview(row, tokenizer, ends, pipeline.train.max_length) for row in rows]


def _preview(row: dict[str, Any], tokenizer: Any, ends: tuple[int, ...], max_length: int) -> dict[str, Any]:
    example = encode(from_row(row), tokenizer, ends, max_length)
    if isinstance(example, Unusable):
        return {"id": row["id"], "problem": f"{example.reason}: {example.detail}"}
    ids = [(token, False) for token in example.prompt] + [(token, True) for token in example.target]
    tokens = [{"id": token, "text": tokenizer.decode([token]), "trained": trained} for token, trained in ids]
    end = "trained" if example.target[-1] in ends else "missing"
    return {"id": row["id"], "tokens": tokens, "num_trained": len(example.target), "end": end}


def _student_tokenizer(pipeline: Pipeline) -> tuple[Any, tuple[int, ...]]:
    from transformers import GenerationConfig

    settings = pipeline.student
    source = find_model(settings.model, settings.revision) if settings.model else find_weights(pipeline.teacher)
    tokenizer = load_tokenizer(source)
    ends = [tokenizer.eos_token_id]
    if (source.path / "generation_config.json").exists():
        configured = GenerationConfig.from_pretrained(source.path).eos_token_id
        ends += configured if isinstance(configured, list) else [configured]
    return tokenizer, tuple(dict.fromkeys(ends))
