"""The exact tokens a student is trained on, for a person to look at."""

from __future__ import annotations

import functools
from typing import Any

from llmdistill.config import Pipeline
from llmdistill.engines.models import ModelSource, find_model, load_tokenizer
from llmdistill.record import from_row
from llmdistill.train.examples import Unusable, encode


def preview(row: dict[str, Any], pipeline: Pipeline) -> dict[str, Any]:
    """One record as tokens, each with whether it is trained; or the problem that keeps it from being trained."""
    tokenizer, ends = _student_tokenizer(pipeline)
    example = encode(from_row(row), tokenizer, ends, pipeline.train.max_length)
    if isinstance(example, Unusable):
        return {"id": row["id"], "problem": f"{example.reason}: {example.detail}"}
    ids = [(token, False) for token in example.prompt] + [(token, True) for token in example.target]
    tokens = [{"id": token, "text": tokenizer.decode([token]), "trained": trained} for token, trained in ids]
    end = "trained" if example.target[-1] in ends else "missing"
    return {"id": row["id"], "tokens": tokens, "num_trained": len(example.target), "end": end}


@functools.cache
def _student_tokenizer(pipeline: Pipeline) -> tuple[Any, tuple[int, ...]]:
    from transformers import GenerationConfig

    settings = pipeline.student
    source: ModelSource = find_model(settings.model or pipeline.teacher.model, settings.revision)
    tokenizer = load_tokenizer(source)
    ends = [tokenizer.eos_token_id]
    if (source.path / "generation_config.json").exists():
        configured = GenerationConfig.from_pretrained(source.path).eos_token_id
        ends += configured if isinstance(configured, list) else [configured]
    return tokenizer, tuple(dict.fromkeys(ends))
