"""The stages of a run with their counts; tokens out, and what follows from them, are upper bounds here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmdistill.config import Model, Pipeline, Signals
from llmdistill.engines.families import num_parameters_of, same_model
from llmdistill.engines.prices import price_of
from llmdistill.generate.prompts import PromptSet
from llmdistill.plan.estimate import Asked, spend
from llmdistill.plan.load import Juror, Load, generate_loads, jurors_of, records_out, tokens_of
from llmdistill.plan.machine import DECODE_EFFICIENCY, FORWARD_EFFICIENCY, Sizes, is_remote
from llmdistill.record import Record
from llmdistill.signals.codec import row_bytes
from llmdistill.signals.header import Header
from llmdistill.templates import TeacherTemplate

_ROW_BYTES = 4_000
_JUDGE_TOKENS = 8
"""What a judge behind an API may write to choose a score; a local one writes nothing."""


_DISTINCT_SHARE = 0.15
"""Share of the draws that are of different tokens: 7.1 of 50 at 600 positions of GSM8K solutions that
SmolLM2-135M-Instruct has read (tests/bench/bench_capture.py gives bytes)."""


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


def upper_bounds(pipeline: Pipeline, prompts: PromptSet, sizes: Sizes, template: TeacherTemplate) -> list[Step]:
    """Every stage, as if each answer were as long as it may be and every record had to be asked about again."""
    held_out = prompts.held_out[: pipeline.evaluate.limit]
    out = records_out(pipeline, len(prompts.pool))
    asked, answered = _prompt_tokens(pipeline, prompts.pool), _answer_tokens(pipeline, prompts.pool)
    text = asked + answered
    chosen = min(out, pipeline.curate.size or out)
    told = asked + tokens_of(template.user)
    stored = [] if pipeline.signals is None else [_signals_step(pipeline.signals, sizes, chosen, told, answered)]
    return [
        Step("prompts", prompts.num_rows, disk_bytes=prompts.num_rows * 1_000),
        _generate_step(pipeline, sizes, prompts.pool, template, out),
        _filter_step(pipeline, sizes, out, text * out),
        Step("curate", out, disk_bytes=chosen * _ROW_BYTES, seconds=out / 500),
        *stored,
        _train_step(pipeline, sizes, chosen, text * chosen),
        _evaluate_step(pipeline, sizes, held_out),
        Step("report", 0, disk_bytes=500_000, seconds=5.0),
    ]


def _prompt_tokens(pipeline: Pipeline, pool: Sequence[Record]) -> int:
    """Tokens of one prompt that is trained on, at most. One that a document gave is counted with its answer."""
    settings, prompts = pipeline.generate, sum(map(_tokens, pool)) // max(1, len(pool))
    if settings.mode == "synthetic_qa":
        return 0
    return max(prompts, settings.max_new_tokens) if settings.mode == "evolve" else prompts


def _answer_tokens(pipeline: Pipeline, pool: Sequence[Record]) -> int:
    """Tokens of one answer at most. Imported ones are there to be counted."""
    settings = pipeline.generate
    if settings.mode == "import":
        return sum(tokens_of(record.reply) for record in pool) // max(1, len(pool))
    if settings.mode == "synthetic_qa":
        return settings.max_new_tokens // settings.synthesis.pairs
    return settings.max_new_tokens


def _generate_step(
    pipeline: Pipeline, sizes: Sizes, pool: Sequence[Record], template: TeacherTemplate, out: int
) -> Step:
    loads = generate_loads(pipeline, pool, template)
    read, written = sum(load.read for load in loads), sum(load.written for load in loads)
    seconds = total_of(_seconds(load.model, pipeline, sizes, load.written, DECODE_EFFICIENCY) for load in loads)
    cost = total_of(_cost(load.model, load.read, load.written) for load in loads)
    requests = sum(load.requests for load in loads)
    return Step("generate", out, requests, read, written, out * _ROW_BYTES, seconds, cost=cost)


def _filter_step(pipeline: Pipeline, sizes: Sizes, num: int, tokens: int) -> Step:
    loads = [_judge_load(pipeline, juror, num, tokens) for juror in jurors_of(pipeline)]
    seconds = [_judge_seconds(load, pipeline, sizes) for load in loads]
    return Step(
        "filter",
        num,
        sum(load.requests for load in loads),
        sum(load.read for load in loads),
        sum(load.written for load in loads),
        num * _ROW_BYTES,
        total_of(seconds),
        cost=total_of(_cost(load.model, load.read, load.written) for load in loads),
    )


def _judge_load(pipeline: Pipeline, juror: Juror, num: int, tokens: int) -> Load:
    settings = pipeline.filter.judge
    requests = num * juror.requests
    each = _JUDGE_TOKENS if is_remote(juror.model) else 0
    if settings and settings.scoring == "written":
        each = settings.max_new_tokens
    answers = 2 if settings and settings.form == "pairwise" else 1
    read = answers * tokens * juror.requests + requests * len(juror.template.user) // 4
    return Load(juror.model, requests, read, requests * each)


def _judge_seconds(load: Load, pipeline: Pipeline, sizes: Sizes) -> float | None:
    reading = _seconds(load.model, pipeline, sizes, load.read, FORWARD_EFFICIENCY)
    return total_of([reading, _seconds(load.model, pipeline, sizes, load.written, DECODE_EFFICIENCY)])


def _seconds(model: Model, pipeline: Pipeline, sizes: Sizes, tokens: int, efficiency: float) -> float | None:
    """Time that a local model takes for tokens; None of a served one, and of one whose size is unknown."""
    if is_remote(model):
        return None
    known = sizes.teacher if same_model(model, pipeline.teacher) else num_parameters_of(model.model)
    return sizes.seconds(tokens, None if known is None else int(known), efficiency)


def total_of(values: Iterable[float | None]) -> float | None:
    """The sum, None when a part of it is unknown."""
    found = list(values)
    known = [value for value in found if value is not None]
    return math.fsum(known) if len(known) == len(found) else None


def _signals_step(settings: Signals, sizes: Sizes, chosen: int, asked: int, answered: int) -> Step:
    """The teacher reads each chosen record once; what is stored goes by the answers' tokens."""
    read, seconds = chosen * (asked + answered), None
    seconds = sizes.seconds(read, sizes.teacher, FORWARD_EFFICIENCY)
    disk = (
        None if sizes.vocabulary is None else round(chosen * answered * _bytes_per_target(settings, sizes.vocabulary))
    )
    return Step("signals", chosen, tokens_in=read, disk_bytes=disk, seconds=seconds)


def _bytes_per_target(settings: Signals, vocabulary: int) -> float:
    """Bytes that one token of an answer takes in the store."""
    kept = (settings.mode, settings.k, settings.draws, settings.log_probs)
    header = Header("", "", "", "", "", vocabulary, *kept, temperature=1.0, seed=0)
    return row_bytes(header, distinct=_DISTINCT_SHARE * settings.draws)


def _train_step(pipeline: Pipeline, sizes: Sizes, chosen: int, tokens_each_epoch: int) -> Step:
    tokens = int(tokens_each_epoch * pipeline.train.epochs)
    seconds = sizes.seconds(tokens, sizes.student, FORWARD_EFFICIENCY, passes=3.0)
    if pipeline.train.method == "kd" and pipeline.signals is None and seconds is not None:
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
    return tokens_of(record.question)


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
