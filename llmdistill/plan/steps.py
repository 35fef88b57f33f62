"""The stages of a run with their counts; tokens out, and what follows from them, are upper bounds here."""

from __future__ import annotations

from dataclasses import dataclass

from llmdistill.config import Model, Pipeline
from llmdistill.engines.prices import price_of
from llmdistill.generate.prompts import PromptSet
from llmdistill.plan.estimate import BYTES_PER_TOKEN, Asked, spend
from llmdistill.plan.machine import DECODE_EFFICIENCY, FORWARD_EFFICIENCY, Sizes, is_remote
from llmdistill.record import Record
from llmdistill.templates import Rubric, TeacherTemplate

_ROW_BYTES = 4_000
_JUDGE_TOKENS = 8
"""What a judge behind an API may write; a local one writes nothing."""


@dataclass(frozen=True)
class Step:
    """One stage of the plan; None means it cannot be known beforehand.

    `cost` is in US dollars; `cost_low` and `cost_high` are the ends of its 95 % interval, if it was measured.
    """

    stage: str
    records: int
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    disk_bytes: int | None = 0
    seconds: float | None = 0.0
    done: bool = False
    cost: float | None = 0.0
    cost_low: float | None = None
    cost_high: float | None = None

    def cells(self) -> list[str]:
        """The step as text for a table; the cost is the last but one."""
        seconds = "done" if self.done else "unknown" if self.seconds is None else duration(self.seconds)
        disk = "unknown" if self.disk_bytes is None else _size(self.disk_bytes)
        counts = [self.records, self.requests, self.tokens_in, self.tokens_out]
        return [self.stage, *(_count(count) if count else "-" for count in counts), disk, money(self.cost), seconds]


def upper_bounds(
    pipeline: Pipeline, prompts: PromptSet, sizes: Sizes, template: TeacherTemplate, rubric: Rubric | None
) -> list[Step]:
    """Every stage, as if each answer were as long as it may be."""
    pool, held_out = len(prompts.pool), prompts.held_out[: pipeline.evaluate.limit]
    asked = sum(map(_tokens, prompts.pool)) + pool * len(template.user) // 4
    answers = pool * pipeline.generate.max_new_tokens
    decode = None if is_remote(pipeline.teacher) else sizes.seconds(answers, sizes.teacher, DECODE_EFFICIENCY)
    cost = _cost(pipeline.teacher, asked, answers)
    chosen = min(pool, pipeline.curate.size or pool)
    trained = (sum(map(_tokens, prompts.pool)) + answers) * chosen // max(1, pool)
    return [
        Step("prompts", prompts.num_rows, disk_bytes=prompts.num_rows * 1_000),
        Step("generate", pool, pool, asked, answers, pool * _ROW_BYTES, decode, cost=cost),
        _filter_step(pipeline, sizes, pool, asked + answers, rubric),
        Step("curate", pool, disk_bytes=chosen * _ROW_BYTES, seconds=pool / 500),
        _train_step(pipeline, sizes, chosen, trained),
        _evaluate_step(pipeline, sizes, held_out),
        Step("report", 0, disk_bytes=500_000, seconds=5.0),
    ]


def _filter_step(pipeline: Pipeline, sizes: Sizes, pool: int, tokens: int, rubric: Rubric | None) -> Step:
    judge = pipeline.judge_model
    if judge is None or rubric is None:
        return Step("filter", pool, disk_bytes=pool * _ROW_BYTES)
    read, written = tokens + pool * len(rubric.user) // 4, pool * _JUDGE_TOKENS if is_remote(judge) else 0
    seconds = None if is_remote(judge) else sizes.seconds(read, sizes.teacher, FORWARD_EFFICIENCY)
    cost = _cost(judge, read, written)
    return Step("filter", pool, pool, read, written, pool * _ROW_BYTES, seconds, cost=cost)


def _train_step(pipeline: Pipeline, sizes: Sizes, chosen: int, tokens_each_epoch: int) -> Step:
    tokens = int(tokens_each_epoch * pipeline.train.epochs)
    seconds = sizes.seconds(tokens, sizes.student, FORWARD_EFFICIENCY, passes=3.0)
    if pipeline.train.method == "kd" and seconds is not None:
        teacher = sizes.seconds(tokens, sizes.teacher, FORWARD_EFFICIENCY)
        seconds = None if teacher is None else seconds + teacher
    # Untrained and trained student, and checkpoints with the optimiser's two moments, all in float32.
    copies = 2 + 3 * (pipeline.train.keep_checkpoints + 1)
    disk = None if sizes.student is None else 4 * sizes.student * copies
    return Step("train", chosen, tokens_in=tokens, disk_bytes=disk, seconds=seconds)


def _evaluate_step(pipeline: Pipeline, sizes: Sizes, held_out: list[Record]) -> Step:
    num, prompt_tokens = len(held_out), sum(map(_tokens, held_out))
    answers = num * pipeline.evaluate.max_new_tokens
    remote = is_remote(pipeline.teacher)
    seconds = None if remote else sizes.seconds(3 * answers, sizes.teacher, DECODE_EFFICIENCY)
    read, disk = 3 * 2 * (prompt_tokens + answers), num * _ROW_BYTES * 2
    cost = _cost(pipeline.teacher, prompt_tokens, answers)
    return Step("evaluate", num, 3 * num, read, 3 * answers, disk, seconds, cost=cost)


def _cost(settings: Model, read: int, written: int) -> float | None:
    price = price_of(settings)
    return None if price is None else spend(price, settings, Asked(read, written))


def _tokens(record: Record) -> int:
    """Tokens of a prompt, from its length in UTF-8: about four bytes a token, for Hangul about three."""
    return max(1, int(len(record.question.encode()) // BYTES_PER_TOKEN))


def duration(seconds: float) -> str:
    """Seconds for people to read."""
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def money(dollars: float | None) -> str:
    """US dollars: a dash for nothing, but never for what is unknown."""
    if dollars is None:
        return "unknown"
    if dollars == 0:
        return "-"
    return f"${dollars:,.4f}" if dollars < 1 else f"${dollars:,.2f}" if dollars < 10_000 else f"${dollars:,.0f}"


def _count(value: int) -> str:
    """A count, in millions where it is too long for a table."""
    return f"{value:,}" if value < 1_000_000 else f"{value / 1e6:,.1f}M"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.1f} GB"
