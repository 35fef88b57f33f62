"""What asking and judging all prompts takes, from the teacher's answers to some of them.

A mean over the answers that are there stands for those that are not; the interval is the 95 % bootstrap-t
interval over records (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5), which
holds what it promises better than percentiles do for a few answers of very different lengths. What is
there already is counted as it is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llmdistill.config import Judge, Model, Pipeline, Price
from llmdistill.engines.base import Completion
from llmdistill.engines.chat import answer_bound
from llmdistill.engines.prices import cost_of, price_of
from llmdistill.filter.checks import failed_check
from llmdistill.filter.judge import Manner, Pointwise
from llmdistill.generate.replies import with_answer
from llmdistill.plan.load import BYTES_PER_TOKEN, Juror, Load, generate_loads, jurors_of, records_out, tokens_of
from llmdistill.record import Message, Record, Reject, TeacherInfo
from llmdistill.templates import Rubric, TeacherTemplate
from llmdistill.verify import verify_in_context

STAGES = ("generate", "filter", "evaluate")
"""Stages that ask a model that may have to be paid for."""

_RESAMPLES = 1000
_FEWEST_ANSWERS = 5
"""Fewer give no interval."""

_MOST_ANSWERS = 2_000
"""More answers make the interval no narrower than anybody needs."""

_CHOICE_TOKENS = 8
"""What a judge behind an API may write to choose a score; a local one reads probabilities and writes nothing."""

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
    """What one request takes: tokens read and written by the model that is asked."""

    read: float = 0.0
    written: float = 0.0
    lost: int = 0


@dataclass(frozen=True)
class _Row:
    """What one answer says of a record: what asking, judging (each juror) and measuring it takes.

    Attributes:
        hint: tokens of what the teacher would be told.
        failed: whether the next teacher would be asked too, as far as that can be known without running code.
    """

    asked: Asked
    hint: int
    failed: bool
    judged: list[Asked] = field(default_factory=list)


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
) -> dict[str, Expense]:
    """Expense of each stage that asks, and of "all" together; empty when there is no answer.

    Other teachers are taken to read and write what the main one does.

    Args:
        pool: records to be asked about.
        num_held_out: prompts that the teacher answers for the evaluation.
        completions: the main teacher's answers to records of the pool, see `usable`.
    """
    if not completions:
        return {}
    by_id = {record.id: record for record in pool}
    answers = random.Random(pipeline.seed).sample(list(completions), min(len(completions), _MOST_ANSWERS))
    size, jurors = _bytes_per_token(answers, by_id, template), jurors_of(pipeline)
    rows = [_row(by_id[item.id], item, pipeline, template, jurors, size) for item in answers]
    loads = generate_loads(pipeline, pool, template)
    rows = _all_judged(rows) if any(load.again for load in loads) else rows
    num, most = len(pool), pipeline.evaluate.max_new_tokens
    once = _values(pipeline.teacher, [row.asked for row in rows])
    judged = _judged_values(rows, jurors) * (records_out(pipeline, num) / num)
    shown = [replace(row.asked, written=min(row.asked.written, most), lost=0) for row in rows]
    each = {
        "generate": _asked_values(rows, loads, num, pipeline),
        "filter": judged,
        "evaluate": _values(pipeline.teacher, shown),
    }
    # Held-out prompts are others than those of the sample: none of them is answered yet.
    known = {"generate": once, "filter": judged, "evaluate": np.zeros_like(once)}
    return _extrapolate(each, known, {"generate": num, "filter": num, "evaluate": num_held_out}, pipeline.seed)


def _extrapolate(
    each: Mapping[str, Floats], known: Mapping[str, Floats], numbers: Mapping[str, int], seed: int
) -> dict[str, Expense]:
    """Expenses of so many records.

    Args:
        each: stage -> [records, 3], what all that is asked about a record takes.
        known: what of it is known already.
    """
    num_rows = len(each[STAGES[0]])
    draws = np.random.default_rng(seed).integers(0, num_rows, (_RESAMPLES, num_rows))
    found, all_known, all_missing = {}, np.zeros(3), np.zeros((num_rows, 3))
    for stage in STAGES:
        sums, missing = known[stage].sum(0), numbers[stage] * each[stage] - num_rows * known[stage]
        found[stage] = _expense(sums, missing, draws)
        all_known, all_missing = all_known + sums, all_missing + missing
    return {**found, "all": _expense(all_known, all_missing, draws)}


def _asked_values(rows: Sequence[_Row], loads: Sequence[Load], num_pool: int, pipeline: Pipeline) -> Floats:
    """[records, 3]: what all teachers together take for a record."""
    told = pipeline.generate.hint != "never"
    total = np.zeros((len(rows), 3))
    for load in loads:
        asked = [replace(row.asked, read=row.asked.read + (row.hint if told and load.again else 0)) for row in rows]
        times = [(load.requests / num_pool) * (row.failed if load.again else 1) for row in rows]
        total += _values(load.model, asked) * np.array(times)[:, None]
    return total


def _judged_values(rows: Sequence[_Row], jurors: Sequence[Juror]) -> Floats:
    """[records, 3]: what the judges together take for a record."""
    total = np.zeros((len(rows), 3))
    for number, juror in enumerate(jurors):
        total += _values(juror.model, [row.judged[number] if row.judged else Asked() for row in rows])
    return total


def _values(settings: Model, asked: Sequence[Asked]) -> Floats:
    """[records, 3]: tokens read, tokens written, US dollars (NaN when the price is unknown)."""
    price = price_of(settings)
    return np.array([[item.read, item.written, spend(price, settings, item)] for item in asked])


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


def _row(
    record: Record,
    completion: Completion,
    pipeline: Pipeline,
    template: TeacherTemplate,
    jurors: Sequence[Juror],
    bytes_per_token: float,
) -> _Row:
    """What a record takes. A prompt that is too long is refused and costs nothing."""
    hint = tokens_of(record.reference or "")
    if completion.finish_reason == "too_long":
        return _Row(Asked(), hint, failed=True)
    asked = Asked(completion.prompt_tokens, completion.completion_tokens, completion.num_lost)
    answer = answer_to_judge(record, completion, pipeline, template)
    settings = pipeline.filter.judge
    judged = [_judged(answer, juror, settings, bytes_per_token) for juror in jurors] if answer and settings else []
    return _Row(asked, hint, answer is None or _may_fail(answer, pipeline), judged)


def _judged(answer: Record, juror: Juror, settings: Judge, bytes_per_token: float) -> Asked:
    """What one juror takes for a record, in all its requests."""
    manner, remote = Manner.of(settings), juror.model.engine == "openai"
    if isinstance(juror.template, Rubric):
        requests = [question.request for question in Pointwise(juror.template, "", "", manner).questions([answer])]
        written = sum(map(answer_bound, requests)) if remote or manner.sampling else 0
        return Asked(sum(_num_bytes(request.messages) for request in requests) / bytes_per_token, written)
    text = (answer.answer or "")[: manner.max_answer_chars]
    other = answer.reference or text
    num_bytes = sum(
        len(part.encode("utf-8", "replace")) for part in (juror.template.user, answer.question, text, other)
    )
    each = manner.sampling.max_new_tokens if manner.sampling else _CHOICE_TOKENS if remote else 0
    return Asked(juror.requests * num_bytes / bytes_per_token, juror.requests * each)


def _all_judged(rows: list[_Row]) -> list[_Row]:
    """The rows as if another teacher had given the answers that are missing, of the mean length."""
    judged = [row.judged for row in rows if row.judged]
    if not judged:
        return rows
    means = [
        Asked(sum(item.read for item in column) / len(column), sum(item.written for item in column) / len(column))
        for column in zip(*judged, strict=True)
    ]
    return [row if row.judged else replace(row, judged=means) for row in rows]


def _may_fail(answer: Record, pipeline: Pipeline) -> bool:
    """Whether an answer is wrong, or could be: plans run no code of a model."""
    settings = pipeline.filter.verify
    if settings is None:
        return False
    if settings.kind == "python":
        return True
    return not verify_in_context(answer.answer or "", answer.reference or "", answer.question, settings).ok


def answer_to_judge(
    record: Record, completion: Completion, pipeline: Pipeline, template: TeacherTemplate
) -> Record | None:
    """The record as the judge would read it; None when it would not get that far."""
    prefill = template.prefill if pipeline.teacher.can_prefill else ""
    written = completion.completion_tokens
    teacher = TeacherInfo(pipeline.teacher.model, None, "", completion.finish_reason, completion.prompt_tokens, written)
    read = with_answer(replace(record, teacher=teacher), completion, pipeline.generate, template, prefill)
    if isinstance(read, Reject) or failed_check(read, pipeline.filter.checks, pipeline.language):
        return None
    return read


def _bytes_per_token(answers: Sequence[Completion], by_id: Mapping[str, Record], template: TeacherTemplate) -> float:
    """Bytes of a prompt per token that the teacher counted; the judge's tokenizer is taken to be alike."""
    counted = [item for item in answers if item.prompt_tokens and item.usage_known]
    tokens = sum(item.prompt_tokens for item in counted)
    num_bytes = sum(_num_bytes(template.ask(by_id[item.id].prompt)) for item in counted)
    return num_bytes / tokens if tokens and num_bytes else BYTES_PER_TOKEN


def _num_bytes(messages: Sequence[Message]) -> int:
    return sum(len(message["content"].encode("utf-8", "replace")) for message in messages)
