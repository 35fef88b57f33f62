"""What a run would do: records, requests, tokens, disk and time, without doing it.

Nothing is fetched and nothing is written. Times come from this run's own
manifests where there are some, else from how fast this machine multiplies
matrices; where neither can be known, the plan says so.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.config import Pipeline
from llmdistill.engines.models import ModelSource, local_copy, num_parameters
from llmdistill.errors import ModelError
from llmdistill.generate.prompts import PromptSet, read_prompts
from llmdistill.record import Record
from llmdistill.run.manifest import read_manifest
from llmdistill.templates import Rubric, TeacherTemplate, load_template

_DECODE_EFFICIENCY = 0.25
_FORWARD_EFFICIENCY = 0.6
"""Shares of the measured matrix rate that batched decoding and forward passes reached on CPUs."""

_ROW_BYTES = 4_000


@dataclass(frozen=True)
class Step:
    """One stage of the plan; None means it cannot be known beforehand."""

    stage: str
    records: int
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    disk_bytes: int | None = 0
    seconds: float | None = 0.0
    done: bool = False

    def cells(self) -> list[str]:
        """The step as text for a table."""
        seconds = "done" if self.done else "unknown" if self.seconds is None else _duration(self.seconds)
        disk = "unknown" if self.disk_bytes is None else f"{self.disk_bytes / 1e6:,.1f} MB"
        counts = [self.records, self.requests, self.tokens_in, self.tokens_out]
        return [self.stage, *(f"{count:,}" if count else "-" for count in counts), disk, seconds]


@dataclass(frozen=True)
class Plan:
    """The whole plan. Token counts out are upper bounds; records shrink as stages reject."""

    name: str
    run_dir: str
    steps: list[Step]
    notes: list[str]


def make_plan(pipeline: Pipeline) -> Plan:
    """Validate a pipeline as far as that goes without models, and estimate its stages.

    Raises:
        LlmdistillError: the pipeline could not run.
    """
    prompts = read_prompts(pipeline.prompts)
    template, _ = load_template(pipeline.generate.template, TeacherTemplate)
    rubric = load_template(pipeline.filter.judge.rubric, Rubric)[0] if pipeline.filter.judge else None
    teacher = local_copy(pipeline.teacher.model, pipeline.teacher.revision)
    sizes = _Sizes.of(teacher, pipeline)
    steps = _steps(pipeline, prompts, sizes, len(template.user), len(rubric.user) if rubric else 0)
    done = {step.stage for step in steps if read_manifest(pipeline.run_path / step.stage)}
    steps = [Step(**{**step.__dict__, "done": step.stage in done}) for step in steps]
    return Plan(pipeline.name, str(pipeline.run_path), steps, _notes(pipeline, prompts, teacher))


@dataclass(frozen=True)
class _Sizes:
    """Parameters of teacher and student (None when the model is not here yet), and this machine's FLOP/s."""

    teacher: int | None
    student: int | None
    flops: float | None

    @classmethod
    def of(cls, teacher: ModelSource | None, pipeline: Pipeline) -> _Sizes:
        count = num_parameters(teacher.path) if teacher else None
        student = None
        if pipeline.student.model:
            source = local_copy(pipeline.student.model, pipeline.student.revision)
            student = num_parameters(source.path) if source else None
        elif teacher and count and pipeline.student.keep_layers:
            student = _share_kept(teacher.path, count, pipeline.student.keep_layers)
        return cls(count, student, _matrix_rate() if count else None)

    def seconds(self, tokens: int, parameters: int | None, efficiency: float, passes: float = 1.0) -> float | None:
        """Time to push tokens through a model: 2 FLOP per parameter and token, `passes` times."""
        if parameters is None or self.flops is None:
            return None
        return 2.0 * tokens * parameters * passes / (self.flops * efficiency)


def _steps(pipeline: Pipeline, prompts: PromptSet, sizes: _Sizes, template: int, rubric: int) -> list[Step]:
    pool, held_out = len(prompts.pool), len(prompts.held_out[: pipeline.evaluate.limit])
    prompt_tokens = sum(_tokens(record) for record in prompts.pool)
    asked = prompt_tokens + pool * template // 4
    answers = pool * pipeline.generate.max_new_tokens
    decode = sizes.seconds(answers, sizes.teacher, _DECODE_EFFICIENCY)
    steps = [
        Step("prompts", prompts.num_rows, disk_bytes=prompts.num_rows * 1_000),
        Step("generate", pool, pool, asked, answers, pool * _ROW_BYTES, decode),
    ]
    if pipeline.filter.judge:
        judged = asked + answers + pool * rubric // 4
        seconds = sizes.seconds(judged, sizes.teacher, _FORWARD_EFFICIENCY)
        steps.append(Step("filter", pool, pool, judged, 0, pool * _ROW_BYTES, seconds))
    else:
        steps.append(Step("filter", pool, disk_bytes=pool * _ROW_BYTES))
    chosen = min(pool, pipeline.curate.size or pool)
    steps.append(Step("curate", pool, disk_bytes=chosen * _ROW_BYTES, seconds=pool / 500))
    steps.append(_train_step(pipeline, sizes, chosen, (prompt_tokens + answers) * chosen // max(1, pool)))
    steps.append(_evaluate_step(pipeline, sizes, held_out, sum(_tokens(record) for record in prompts.held_out)))
    steps.append(Step("report", 0, disk_bytes=500_000, seconds=5.0))
    return steps


def _train_step(pipeline: Pipeline, sizes: _Sizes, chosen: int, tokens_each_epoch: int) -> Step:
    tokens = int(tokens_each_epoch * pipeline.train.epochs)
    seconds = sizes.seconds(tokens, sizes.student, _FORWARD_EFFICIENCY, passes=3.0)
    if pipeline.train.method == "kd" and seconds is not None:
        seconds += sizes.seconds(tokens, sizes.teacher, _FORWARD_EFFICIENCY) or 0.0
    # Untrained and trained student, and checkpoints with the optimiser's two moments, all in float32.
    copies = 2 + 3 * (pipeline.train.keep_checkpoints + 1)
    disk = None if sizes.student is None else 4 * sizes.student * copies
    return Step("train", chosen, tokens_in=tokens, disk_bytes=disk, seconds=seconds)


def _evaluate_step(pipeline: Pipeline, sizes: _Sizes, held_out: int, prompt_tokens: int) -> Step:
    written = 3 * held_out * pipeline.evaluate.max_new_tokens
    read = 3 * 2 * (prompt_tokens + held_out * pipeline.evaluate.max_new_tokens)
    seconds = sizes.seconds(written, sizes.teacher, _DECODE_EFFICIENCY)
    return Step("evaluate", held_out, 3 * held_out, read, written, held_out * _ROW_BYTES * 2, seconds)


def _tokens(record: Record) -> int:
    """Tokens of a prompt, from its length in UTF-8: about four bytes a token, for Hangul about three."""
    return max(1, len(record.question.encode()) // 4)


def _share_kept(path: Path, parameters: int, keep: int) -> int:
    """Parameters that stay when a model keeps some of its layers."""
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text("utf-8"))
        embeddings = config["vocab_size"] * config["hidden_size"] * (1 if config.get("tie_word_embeddings") else 2)
        num_layers = config["num_hidden_layers"]
    except (ValueError, KeyError, TypeError):
        message = "config.json names no vocab_size, hidden_size and num_hidden_layers"
        raise ModelError(message, where=path, do="use a causal language model, or set student.model") from None
    if keep > num_layers:
        message = f"student.keep_layers is {keep}, but the teacher has {num_layers} layers"
        raise ModelError(message, where=path, do="set a smaller student.keep_layers")
    return embeddings + (parameters - embeddings) * keep // num_layers


def _matrix_rate() -> float | None:
    """FLOP/s of this machine in the precision a model would use; None on a GPU, where decoding is bound by memory."""
    import torch

    from llmdistill.engines.models import choose_device, choose_dtype

    device = choose_device("auto")
    if device != "cpu":
        return None
    left = torch.randn(512, 1024).to(choose_dtype("auto", device))
    right = torch.randn(1024, 1024).to(left.dtype)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        left @ right
        count += 1
    return 2 * 512 * 1024 * 1024 * count / (time.perf_counter() - started)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _notes(pipeline: Pipeline, prompts: PromptSet, teacher: ModelSource | None) -> list[str]:
    notes = [f"{len(prompts.pool):,} prompts to generate from, {len(prompts.held_out):,} held out for evaluation"]
    if prompts.rejects:
        first = prompts.rejects[0]
        notes.append(f"{len(prompts.rejects):,} rows cannot be used; the first: {first.where}: {first.reason}")
    if not prompts.held_out:
        notes.append("nothing is held out: the student cannot be measured (set prompts.held_out)")
    if teacher is None:
        notes.append(f"{pipeline.teacher.model} is not on this machine yet; it will be fetched, and times are unknown")
    if pipeline.filter.judge is None:
        notes.append("no judge: bad answers are only caught by their form")
    notes.append("tokens out, and the times that follow from them, are upper bounds")
    return notes
