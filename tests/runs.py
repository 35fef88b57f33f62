"""Run directories put together by hand: finished stages of real records, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmdistill.config import Curate, Filter, Generate, Model, Pipeline, Prompts, Student
from llmdistill.record import Record, Reject, TeacherInfo, Verdict, record_id
from llmdistill.run.manifest import Counts
from llmdistill.run.stage import Stage, begin, write_part, write_records


def pipeline(run_dir: Path, **sections: object) -> Pipeline:
    """A pipeline that never opens a model, unless a section says otherwise."""
    values: dict[str, object] = {
        "name": "test",
        "run_dir": str(run_dir),
        "prompts": Prompts(path="data/self-instruct/prompts.jsonl"),
        "teacher": Model(model="no/model"),
        "student": Student(keep_layers=2),
        "generate": Generate(template="prompts/en/answer.yaml"),
        "filter": Filter(judge=None),
        "curate": Curate(),
    }
    return Pipeline(**{**values, **sections})  # type: ignore[arg-type]


def answered(prompt: str, answer: str = "An answer.", score: float | None = None) -> Record:
    """A record as `filter` leaves it."""
    messages = [{"role": "user", "content": prompt}]
    verdicts = [] if score is None else [Verdict("judge", "hash", score, "parsed")]
    return Record(
        record_id(messages),
        messages,
        [{"role": "assistant", "content": answer}],
        answer=answer,
        teacher=TeacherInfo("m", "r", "d", "stop", 10, 5, 0.0),
        verdicts=verdicts,
    )


def finish_stage(
    run_dir: Path,
    name: str,
    shards: Sequence[Sequence[Record]],
    rejects: Sequence[Reject] = (),
    held_out: Sequence[Record] | None = None,
) -> None:
    """Write a finished stage: shards, rejects, manifest."""
    stage = begin(run_dir, name, {"made": "by hand"})
    assert isinstance(stage, Stage)
    for index, records in enumerate(shards):
        write_part(stage, index, list(records))
    if held_out is not None:
        write_records(stage.dir / "held_out.parquet", list(held_out))
    reasons = stage.write_rejects(list(rejects))
    kept = sum(map(len, shards)) + len(held_out or ())
    stage.finish(Counts(kept + len(rejects), kept, len(rejects), reasons=reasons))
