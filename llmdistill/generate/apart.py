"""Answers that are asked for elsewhere, shard by shard: what a worker does, and what is made of what it gives back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llmdistill.config import Pipeline
from llmdistill.errors import ConfigError
from llmdistill.generate.answers import Answers
from llmdistill.generate.attempts import checking_parts
from llmdistill.generate.samples import expand
from llmdistill.run.digest import Parts, digest_of
from llmdistill.run.files import read_json, write_json
from llmdistill.run.manifest import Manifest, Usage
from llmdistill.run.shards import Item, Result, Shard, Task, check_can_be_apart, check_same, run_shard, work_apart
from llmdistill.run.stage import REJECTS, Stage, checked_part_paths, part_path, read_records
from llmdistill.verify.records import RecordVerifier

_INPUT = "prompts/part-00000.parquet"


def answer_apart(pipeline: Pipeline, answers: Answers, stage: Stage) -> Manifest:
    """As `Answers.run`, with the same result, by the workers of `run.executor`.

    Raises:
        ConfigError: the settings ask for what only one process can do.
    """
    started = time.monotonic()
    teachers = answers.teachers.all
    check_can_be_apart(pipeline, [(teacher.role, teacher.asker.engine.settings) for teacher in teachers])
    paths = checked_part_paths(pipeline.run_path, "prompts")
    owed = [_shard(index, path, pipeline) for index, path in enumerate(paths) if not _is_made(stage, index)]
    journals: list[Parts] = [teacher.asker.asked for teacher in teachers]
    if pipeline.filter.verify is not None and checking_parts(pipeline):
        journals.append(RecordVerifier(pipeline.filter.verify).parts)
    task = Task(
        answer_shard,
        stage.parts,
        journals,
        lambda index, folder, result: _take(stage, index, folder, result),
        {"asked": digest_of(answers.asked)},
        _prompt_files(pipeline),
    )
    work_apart(pipeline, stage, owed, len(paths), task)
    return _finish(stage, len(paths), started)


def _shard(index: int, path: Path, pipeline: Pipeline) -> Shard:
    def owners() -> set[str]:
        num_samples = pipeline.generate.samples.n
        return {sample.id for record in read_records(path) for sample in expand(record, num_samples)}

    return Shard(index, {_INPUT: path}, owners)


def _prompt_files(pipeline: Pipeline) -> list[str]:
    names = [pipeline.teacher_template]
    if pipeline.generate.hint != "never":
        names.append(pipeline.generate.hint_template or f"prompts/{pipeline.language}/hint.yaml")
    return names


def answer_shard(item: Item) -> Result:
    """A worker's part: ask about every prompt of one shard."""

    def work(pipeline: Pipeline, stage: Stage) -> Result:
        answers = Answers(pipeline)
        check_same(digest_of(answers.asked), item["asked"])
        manifest = answers.run(stage)
        counts, usage = asdict(manifest.counts), asdict(manifest.usage)
        return {"counts": counts, "usage": usage, "rounds": manifest.metrics["rounds"]}

    return run_shard(item, work)


def _note_path(stage: Stage, index: int) -> Path:
    return stage.working_dir / f"shard-{index:05d}.json"


def _is_made(stage: Stage, index: int) -> bool:
    return stage.has_shard(index) and _note_path(stage, index).exists()


def _take(stage: Stage, index: int, folder: Path, result: Result) -> None:
    """Put what a worker has made in its place; the part itself comes last."""
    write_json(_note_path(stage, index), result)
    stage.put_shard(index, part_path(folder / stage.name, 0), folder / stage.name / REJECTS)


def _finish(stage: Stage, num_shards: int, started: float) -> Manifest:
    notes: list[Result] = [read_json(_note_path(stage, index)) for index in range(num_shards)]
    counts = stage.merge_rejects(num_shards, sum(note["counts"]["input"] for note in notes))
    usage = sum((Usage(**note["usage"]) for note in notes), Usage())
    usage = replace(usage, seconds=round(time.monotonic() - started, 1))
    return stage.finish(counts, usage, {"rounds": _rounds([note["rounds"] for note in notes])})


def _rounds(shards: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What each teacher was asked in all shards together."""
    found = []
    for same in zip(*shards, strict=True):
        reasons = sum((Counter(one["reasons"]) for one in same), Counter[str]())
        numbers = {key: sum(one[key] for one in same) for key in ("asked", "usable")}
        found.append({**same[0], **numbers, "reasons": dict(sorted(reasons.items()))})
    return found


def check_mode(pipeline: Pipeline) -> None:
    """Raise `ConfigError` for a mode that looks at the whole pool and asks models meanwhile."""
    mode = pipeline.generate.mode
    if mode in ("synthetic_qa", "evolve"):
        advice = "do this stage with llmdistill generate --set run.executor=local, then the others with ray"
        raise ConfigError(
            "new prompts are compared with all others, in one process", where=f"generate.mode: {mode}", do=advice
        )
