"""The stages `prompts` and `generate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llmdistill.config import Model, Pipeline
from llmdistill.engines.terms import check_terms
from llmdistill.errors import InputError
from llmdistill.generate.answers import Answers
from llmdistill.generate.apart import answer_apart, check_mode
from llmdistill.generate.attempts import checking_parts
from llmdistill.generate.evolve import Evolved
from llmdistill.generate.imports import Imported, read_imports
from llmdistill.generate.prompts import PromptSet, input_hashes, read_prompts
from llmdistill.generate.synthesis import Synthesis
from llmdistill.run.digest import Parts, flatten
from llmdistill.run.executor import is_apart
from llmdistill.run.files import read_json
from llmdistill.run.manifest import Counts, Manifest
from llmdistill.run.shards import absorb
from llmdistill.run.stage import HELD_OUT, Stage, begin, inputs_of, write_part, write_records
from llmdistill.templates import TeacherTemplate, load_template


class Mode(Protocol):
    """One way to generate.

    Attributes:
        asked: everything that the answers depend on that were paid for; changing it needs --fresh.
    """

    asked: Parts

    def run(self, stage: Stage) -> Manifest:
        """Do what is not done yet, write the shards, finish the stage."""
        ...


MODES: dict[str, Callable[[Pipeline], Mode]] = {
    "rationale": Answers,
    "answer": Answers,
    "synthetic_qa": Synthesis,
    "evolve": Evolved,
    "import": Imported,
}
"""What `generate.mode` names. Each is made of a pipeline."""


def prompts_of(pipeline: Pipeline) -> PromptSet:
    """What the prompt file holds, as the mode reads it.

    Raises:
        InputError: no row can be used, or the file is of a kind that the mode does not read.
    """
    if pipeline.prompts.are_documents and pipeline.generate.mode != "synthetic_qa":
        advice = "give a .jsonl, .json or .parquet file of prompts, or set generate.mode: synthetic_qa"
        raise InputError("documents are for generate.mode: synthetic_qa", where=pipeline.prompts.path, do=advice)
    read_file = read_imports if pipeline.generate.mode == "import" else read_prompts
    return read_file(pipeline.prompts)


def read(pipeline: Pipeline, *, fresh: bool = False) -> Manifest:
    """Stage `prompts`: read the prompt file into Records, hold some out, set bad rows aside."""
    parts = {**flatten(pipeline.prompts.digest_view(), "prompts."), **input_hashes(pipeline.prompts)}
    parts["generate.shard_size"] = pipeline.generate.shard_size
    parts["generate.imports"] = pipeline.generate.mode == "import"
    stage = begin(pipeline.run_path, "prompts", parts)
    if isinstance(stage, Manifest):
        return stage
    found = prompts_of(pipeline)
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
    if is_apart(pipeline.run):
        check_mode(pipeline)
    # Only what changes the answers costs anything to change; how they are parsed does not.
    parts = {
        **flatten(pipeline.generate.digest_view(), "generate."),
        "generate.template_sha256": load_template(pipeline.teacher_template, TeacherTemplate)[1],
        **mode.asked,
        **checking_parts(pipeline),
        **inputs_of(pipeline.run_path, "prompts"),
    }
    guard = _paid_for(pipeline, mode.asked)
    stage = begin(pipeline.run_path, "generate", parts, guard=guard, fresh=fresh, retry_failed=retry_failed)
    if isinstance(stage, Manifest):
        return stage
    for key, model in teachers_of(pipeline).items():
        check_terms(model, key)
    absorb(stage)
    if is_apart(pipeline.run) and isinstance(mode, Answers):
        return answer_apart(pipeline, mode, stage)
    return mode.run(stage)


def _paid_for(pipeline: Pipeline, asked: Parts) -> tuple[str, ...]:
    """Keys that answers on disk depend on. A teacher or a hint that is new has none: adding it loses nothing."""
    begun_path = pipeline.run_path / "generate" / "begun.json"
    begun = read_json(begun_path) if begun_path.exists() else {}
    return tuple(key for key in asked if key in begun)


def teachers_of(pipeline: Pipeline) -> dict[str, Model]:
    """Every model that is asked for answers to train on, by where it stands in the pipeline file."""
    settings = pipeline.generate
    if settings.mode == "import":
        return {}
    found = {"teacher": pipeline.teacher}
    if settings.fallback:
        found["generate.fallback"] = settings.fallback
    return found | {f"generate.co_teachers.{n}.model": co.model for n, co in enumerate(settings.co_teachers)}
