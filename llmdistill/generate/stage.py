"""The stages `prompts` and `generate`."""

from __future__ import annotations

from typing import Protocol

from llmdistill.config import Model, Pipeline
from llmdistill.engines.terms import check_terms
from llmdistill.generate.answers import Answers
from llmdistill.generate.prompts import PromptSet, input_hashes, read_prompts
from llmdistill.run.digest import Parts, flatten
from llmdistill.run.manifest import Counts, Manifest
from llmdistill.run.stage import Stage, begin, inputs_of, write_part, write_records

HELD_OUT = "held_out.parquet"


class Mode(Protocol):
    """One way to generate.

    Attributes:
        asked: everything that the answers depend on that were paid for; changing it needs --fresh.
    """

    asked: Parts

    def run(self, stage: Stage) -> Manifest:
        """Do what is not done yet, write the shards, finish the stage."""
        ...


MODES: dict[str, type[Answers]] = {"rationale": Answers, "answer": Answers}
"""What `generate.mode` names. Each is made of a pipeline."""


def read(pipeline: Pipeline, *, fresh: bool = False) -> Manifest:
    """Stage `prompts`: read the prompt file into Records, hold some out, set bad rows aside."""
    parts = {**flatten(pipeline.prompts.digest_view(), "prompts."), **input_hashes(pipeline.prompts)}
    parts["generate.shard_size"] = pipeline.generate.shard_size
    stage = begin(pipeline.run_path, "prompts", parts)
    if isinstance(stage, Manifest):
        return stage
    found = read_prompts(pipeline.prompts)
    size = pipeline.generate.shard_size
    for index, start in enumerate(range(0, len(found.pool), size)):
        write_part(stage, index, found.pool[start : start + size])
    write_records(stage.dir / HELD_OUT, found.held_out)
    reasons = stage.write_rejects(found.rejects)
    return stage.finish(_counts(found, reasons), metrics={"held_out": len(found.held_out)})


def _counts(found: PromptSet, reasons: dict[str, int]) -> Counts:
    """Held-out prompts are kept, not rejected: they go to `evaluate` instead of `generate`."""
    kept = len(found.pool) + len(found.held_out)
    return Counts(found.num_rows, kept, len(found.rejects), reasons=reasons)


def run(pipeline: Pipeline, *, fresh: bool = False, retry_failed: bool = False) -> Manifest:
    """Stage `generate`: what the teacher makes of the prompts of the pool.

    Raises:
        ConfigError: the teacher's terms restrict training on its answers, and nobody has accepted them.
        BudgetError, TryLaterError, ServerError: it had to stop; the answers so far are kept.
    """
    mode = MODES[pipeline.generate.mode](pipeline)
    # Only what changes the answers costs anything to change; how they are parsed does not.
    parts = {
        **flatten(pipeline.generate.digest_view(), "generate."),
        **mode.asked,
        **inputs_of(pipeline.run_path, "prompts"),
    }
    guard = tuple(mode.asked)
    stage = begin(pipeline.run_path, "generate", parts, guard=guard, fresh=fresh, retry_failed=retry_failed)
    if isinstance(stage, Manifest):
        return stage
    for key, model in teachers_of(pipeline).items():
        check_terms(model, key)
    return mode.run(stage)


def teachers_of(pipeline: Pipeline) -> dict[str, Model]:
    """Every model whose answers are trained on, by where it stands in the pipeline file."""
    settings = pipeline.generate
    found = {"teacher": pipeline.teacher}
    if settings.fallback:
        found["generate.fallback"] = settings.fallback
    return found | {f"generate.co_teachers.{n}.model": co.model for n, co in enumerate(settings.co_teachers)}
