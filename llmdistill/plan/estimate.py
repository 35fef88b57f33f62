"""What asking and judging all prompts takes, from the teacher's answers to some of them.

A mean over the answers that are there stands for those that are not; the interval is the 95 % bootstrap-t
interval over records (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5), which
holds what it promises better than percentiles do for a few answers of very different lengths. What is
there already is counted as it is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmdistill.config import Model, Pipeline, Price
from llmdistill.engines.base import Completion
from llmdistill.engines.chat import answer_bound
from llmdistill.engines.prices import cost_of, price_of
from llmdistill.filter.checks import failed_check
from llmdistill.filter.judge import judge_request
from llmdistill.generate.replies import with_answer
from llmdistill.record import Message, Record, TeacherInfo
from llmdistill.templates import Rubric, TeacherTemplate

STAGES = ("generate", "filter", "evaluate")
"""Stages that ask a model that may have to be paid for."""

BYTES_PER_TOKEN = 4.0
"""Of text in UTF-8, where no answer says better."""

_RESAMPLES = 1000
_FEWEST_ANSWERS = 5
"""Fewer give no interval."""

_MOST_ANSWERS = 2_000
"""More answers make the interval no narrower than anybody needs."""

_CHARS_PER_TOKEN = 4

Floats = np.ndarray[Any, np.dtype[np.float64]]
Draws = np.ndarray[Any, np.dtype[np.int64]]
"""[resamples, records]: indices drawn with replacement."""


@dataclass(frozen=True)
class Expense:
    """Tokens, and US dollars with their 95 % interval; None where nobody knows."""

    tokens_in: int
    tokens_out: int
    cost: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Asked:
    """What one record takes of one stage: tokens read and written by the model that is asked."""

    read: float = 0.0
    written: float = 0.0
    lost: int = 0


def is_batch(settings: Model) -> bool:
    """Whether a model is asked through a provider's batch API."""
    return settings.engine == "openai" and settings.api.batch


def spend(price: Price | None, settings: Model, asked: Asked) -> float:
    """US dollars for what was asked, NaN when the price is unknown. A lost call may have cost as much again."""
    if price is None:
        return float("nan")
    return (1 + asked.lost) * cost_of(price, asked.read, asked.written, is_batch(settings))


def usable(completions: Sequence[Completion], pool: Sequence[Record]) -> list[Completion]:
    """Answers that can stand for others: to a prompt of the pool, and not owed again."""
    ids = {record.id for record in pool}
    return [item for item in completions if item.id in ids and item.finish_reason != "failed"]


def measure(
    pipeline: Pipeline,
    pool: Sequence[Record],
    num_held_out: int,
    completions: Sequence[Completion],
    template: TeacherTemplate,
    rubric: Rubric | None,
) -> dict[str, Expense]:
    """Expense of each stage that asks, and of "all" together; empty when there is no answer.

    Args:
        pool: records to be asked about.
        num_held_out: prompts that the teacher answers for the evaluation.
        completions: answers to records of the pool, see `usable`.
    """
    if not completions:
        return {}
    by_id = {record.id: record for record in pool}
    answers = random.Random(pipeline.seed).sample(list(completions), min(len(completions), _MOST_ANSWERS))
    size = _bytes_per_token(answers, by_id, template)
    rows = [_asked(by_id[item.id], item, pipeline, template, rubric, size) for item in answers]
    payers = {"generate": pipeline.teacher, "filter": pipeline.judge_model, "evaluate": pipeline.teacher}
    numbers = {"generate": len(pool), "filter": len(pool), "evaluate": num_held_out}
    return _extrapolate(rows, payers, numbers, pipeline.seed)


def _extrapolate(
    rows: Sequence[Mapping[str, Asked]], payers: Mapping[str, Model | None], numbers: Mapping[str, int], seed: int
) -> dict[str, Expense]:
    draws = np.random.default_rng(seed).integers(0, len(rows), (_RESAMPLES, len(rows)))
    found, all_known, all_missing = {}, np.zeros(3), np.zeros((len(rows), 3))
    for stage in STAGES:
        values = _values([row[stage] for row in rows], payers[stage])
        # Held-out prompts are others than those of the sample: none of them is answered yet.
        num_known = 0 if stage == "evaluate" else len(rows)
        known = values.sum(0) if num_known else np.zeros(3)
        missing = max(0, numbers[stage] - num_known) * values
        found[stage] = _expense(known, missing, draws)
        all_known, all_missing = all_known + known, all_missing + missing
    return {**found, "all": _expense(all_known, all_missing, draws)}


def _values(asked: Sequence[Asked], settings: Model | None) -> Floats:
    """[records, 3]: tokens read, tokens written, US dollars (NaN when the price is unknown)."""
    price = price_of(settings) if settings else None
    costs = [spend(price, settings, item) if settings else 0.0 for item in asked]
    return np.array([[item.read, item.written, cost] for item, cost in zip(asked, costs, strict=True)])


def _expense(known: Floats, missing: Floats, draws: Draws) -> Expense:
    """What is known, and what is missing as each record would have it: [records, 3]."""
    sums = known + missing.mean(0)
    tokens_in, tokens_out, cost = round(float(sums[0])), round(float(sums[1])), float(sums[2])
    if np.isnan(cost):
        return Expense(tokens_in, tokens_out, None)
    if len(missing) < _FEWEST_ANSWERS and missing[:, 2].any():
        return Expense(tokens_in, tokens_out, cost)
    low, high = _interval(missing[:, 2], draws)
    return Expense(tokens_in, tokens_out, cost, float(known[2]) + max(0.0, low), float(known[2]) + high)


def _interval(values: Floats, draws: Draws) -> tuple[float, float]:
    """95 % bootstrap-t interval of a mean."""
    mean, resampled = float(values.mean()), values[draws]
    spread = resampled.std(1)
    varied = spread > 1e-12 * abs(mean)
    if not varied.any():
        return mean, mean
    scores = (resampled[varied].mean(1) - mean) / spread[varied]
    low, high = np.percentile(scores, [2.5, 97.5])
    return mean - float(high * values.std()), mean - float(low * values.std())


def _asked(
    record: Record,
    completion: Completion,
    pipeline: Pipeline,
    template: TeacherTemplate,
    rubric: Rubric | None,
    bytes_per_token: float,
) -> dict[str, Asked]:
    """What a record takes, stage by stage. A prompt that is too long is refused and costs nothing."""
    if completion.finish_reason == "too_long":
        return dict.fromkeys(STAGES, Asked())
    read, written = completion.prompt_tokens, completion.completion_tokens
    judged = Asked()
    answer = answer_to_judge(record, completion, pipeline, template)
    if rubric and pipeline.filter.judge and answer:
        request = judge_request(answer, rubric, pipeline.filter.judge.max_answer_tokens * _CHARS_PER_TOKEN)
        # A local judge reads the probabilities of its choices and writes nothing.
        remote = pipeline.judge_model is not None and pipeline.judge_model.engine == "openai"
        judged = Asked(_num_bytes(request.messages) / bytes_per_token, answer_bound(request) if remote else 0)
    shorter = min(written, pipeline.evaluate.max_new_tokens)
    return {"generate": Asked(read, written, completion.num_lost), "filter": judged, "evaluate": Asked(read, shorter)}


def answer_to_judge(
    record: Record, completion: Completion, pipeline: Pipeline, template: TeacherTemplate
) -> Record | None:
    """The record as the judge would read it; None when it would not get that far."""
    prefill = template.prefill if pipeline.teacher.can_prefill else ""
    written = completion.completion_tokens
    teacher = TeacherInfo(pipeline.teacher.model, None, "", completion.finish_reason, completion.prompt_tokens, written)
    read = with_answer(replace(record, teacher=teacher), completion, pipeline.generate, template, prefill)
    usable = isinstance(read, Record) and not failed_check(read, pipeline.filter.checks, pipeline.language)
    return read if isinstance(read, Record) and usable else None


def _bytes_per_token(answers: Sequence[Completion], by_id: Mapping[str, Record], template: TeacherTemplate) -> float:
    """Bytes of a prompt per token that the teacher counted; the judge's tokenizer is taken to be alike."""
    counted = [item for item in answers if item.prompt_tokens and item.usage_known]
    tokens = sum(item.prompt_tokens for item in counted)
    num_bytes = sum(_num_bytes(template.ask(by_id[item.id].prompt)) for item in counted)
    return num_bytes / tokens if tokens and num_bytes else BYTES_PER_TOKEN


def _num_bytes(messages: Sequence[Message]) -> int:
    return sum(len(message["content"].encode("utf-8", "replace")) for message in messages)
