"""Run directories as the stages leave them, written with the stages' own functions."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmdistill.config import Pipeline
from llmdistill.curate.coverage import coverage_curve, plane
from llmdistill.record import Record, Reject, TeacherInfo, Verdict, record_id
from llmdistill.run.files import write_table
from llmdistill.run.manifest import Counts, Manifest, Usage
from llmdistill.run.stage import Stage, begin, write_part, write_records


@dataclass
class Texts:
    """Untrusted text, by the place it gets onto the page from."""

    prompt: str = "How many moons has Mars?"
    answer: str = "Two."
    reason: str = "low_score"
    detail: str = "1.20 < 3.0"
    where: str = "prompts.jsonl:7"
    row: str = '{"x": 1}'
    version: str = "1.0"
    replies: dict = field(
        default_factory=lambda: {"teacher": "Two moons.", "untrained": "the the the", "student": "It has two."}
    )


def pipeline(run_dir: Path, **changes) -> Pipeline:
    values = {
        "name": "moons",
        "run_dir": str(run_dir),
        "prompts": {"path": "prompts.jsonl"},
        "teacher": {"model": "big"},
        "student": {"keep_layers": 4},
    }
    return Pipeline.model_validate(values | changes)


def record(text: str, number: int, score: float | None = None, answer: str = "Two.") -> Record:
    prompt = [{"role": "user", "content": f"{text} ({number})"}]
    verdicts = [] if score is None else [Verdict("judge", "hash", score, "parsed")]
    return Record(
        record_id(prompt),
        prompt,
        completion=[{"role": "assistant", "content": answer}],
        answer=answer,
        reference="2",
        teacher=TeacherInfo("big", "main", "digest", "stop", 12, 5 + number % 40, 0.0),
        verdicts=verdicts,
    )


def full_run(run_dir: Path, texts: Texts | None = None, num: int = 60, *, measured: bool = False) -> None:
    """A run with every piece: held-out prompts, scores, a map, a loss, rejects in every stage.

    With `measured` also the coverage; its charts take a while to draw.
    """
    texts = texts or Texts()
    records = [record(texts.prompt, i, 1 + 4 * i / num, texts.answer) for i in range(num)]
    held_out = [record(texts.prompt, 1000 + i) for i in range(12)]
    bad_row = Record("0" * 32, [], meta=json.dumps({"row": texts.row}))
    _prompts(run_dir, records, held_out, [Reject(bad_row, "prompts", "invalid_json", texts.detail, texts.where)])
    _stage(run_dir, "generate", records[5:], _rejects("generate", "unparsed", records[:5], texts))
    _stage(run_dir, "filter", records[25:], _rejects("filter", texts.reason, records[5:25], texts))
    _curate(run_dir, records[25:], texts, measured)
    history = [{"step": i, "loss": 3.0 / (1 + i / 10), "learning_rate": 1e-4} for i in range(1, 81)]
    _stage(run_dir, "train", records[40:], [], metrics={"history": history, "target_tokens": 90})
    measured = [_measured(item, texts) for item in held_out]
    _stage(run_dir, "evaluate", measured, [], metrics={"table": table()}, versions={"torch": texts.version})


def bare_run(run_dir: Path) -> None:
    """A run without held-out prompts, judge, map, rejects or loss."""
    records = [record("Count to three.", i) for i in range(3)]
    _prompts(run_dir, records, [], [])
    for name in ("generate", "filter", "curate", "train"):
        _stage(run_dir, name, records, [])
    stage = begin(run_dir, "evaluate", {"what": "evaluate"})
    assert isinstance(stage, Stage)
    stage.finish(Counts(0, 0, 0), metrics={"table": {}})


def table(student_kl: float = 0.4, student_top1: float = 0.8) -> dict:
    def row(kl: float, top1: float) -> dict:
        measures = {"kl": kl, "top1": top1, "ce": 1 + kl}
        weighed = {key: {"mean": value, "low": value * 0.95, "high": value * 1.05} for key, value in measures.items()}
        return {
            "parameters": 134_515_008,
            "bytes": 269_060_552,
            "tokens_per_second": 51.3,
            "stopped": 0.75,
            "answer_tokens": 48.2,
            **{f"teacher_text_{key}": value for key, value in weighed.items()},
            **{f"human_text_{key}": None for key in weighed},
        }

    return {"teacher": row(0.0, 1.0), "untrained": row(2.0, 0.3), "student": row(student_kl, student_top1)}


def stage_of(run_dir: Path, name: str, kept: list[Record], rejects: list[Reject], metrics: dict | None = None) -> None:
    """A finished stage with these records."""
    shutil.rmtree(run_dir / name, ignore_errors=True)
    _stage(run_dir, name, kept, rejects, metrics=metrics)


def _measured(item: Record, texts: Texts) -> Record:
    sums = {role: {"kl": 4.0, "top1": 6.0, "ce": 9.0, "tokens": 10.0} for role in ("teacher", "untrained", "student")}
    return item.with_meta(replies=texts.replies, distances={"teacher_text": sums})


def _rejects(stage: str, reason: str, records: list[Record], texts: Texts) -> list[Reject]:
    return [Reject(item, stage, reason, texts.detail) for item in records]


def _prompts(run_dir: Path, records: list[Record], held_out: list[Record], rejects: list[Reject]) -> None:
    stage = begin(run_dir, "prompts", {"what": "prompts"})
    assert isinstance(stage, Stage)
    write_part(stage, 0, records)
    write_records(stage.dir / "held_out.parquet", held_out)
    reasons = stage.write_rejects(rejects)
    kept = len(records) + len(held_out)
    counts = Counts(kept + len(rejects), kept, len(rejects), reasons=reasons)
    stage.finish(counts, Usage(seconds=0.5), metrics={"held_out": len(held_out)})


def _stage(
    run_dir: Path,
    name: str,
    kept: list[Record],
    rejects: list[Reject],
    metrics: dict | None = None,
    versions: dict | None = None,
    decisions: pa.Table | None = None,
) -> None:
    stage = begin(run_dir, name, {"what": name})
    assert isinstance(stage, Stage)
    write_part(stage, 0, kept)
    if decisions:
        write_table(stage.dir / "decisions.parquet", decisions)
    reasons = stage.write_rejects(rejects)
    counts = Counts(len(kept) + len(rejects), len(kept), len(rejects), reasons=reasons)
    manifest = stage.finish(counts, Usage(10, 1200, 3400, 71.0, 0.0), metrics)
    if versions:
        values = {key: getattr(manifest, key) for key in Manifest.__dataclass_fields__}
        Manifest(**values | {"versions": manifest.versions | versions}).write(stage.dir)


def _curate(run_dir: Path, records: list[Record], texts: Texts, measured: bool) -> None:
    """20 chosen, 12 copies in three groups, 3 for a test question."""
    kept, copies, contaminated = records[15:], records[:12], records[12:15]
    rejects = _rejects("curate", "near_duplicate", copies, texts)
    rejects += [Reject(item, "curate", "contaminated", f"({texts.where}) {texts.detail}") for item in contaminated]
    originals = {item.id: kept[number % 3].id for number, item in enumerate(copies)}
    places = np.random.default_rng(0).normal(size=(len(kept), 16))
    vectors = places / np.linalg.norm(places, axis=1, keepdims=True)
    coverage = coverage_curve(vectors, np.arange(15), seed=0).as_dict() if measured else {}
    metrics = {"coverage": coverage, "contamination": {texts.where: 3, "held_out": 0}}
    decided = decisions_of(kept, rejects, originals, plane(vectors))
    _stage(run_dir, "curate", kept, rejects, metrics=metrics, decisions=decided)


def decisions_of(
    kept: list[Record], rejects: list[Reject], originals: dict[str, str], places: np.ndarray, **columns: list
) -> pa.Table:
    """The decisions on these records, without the columns that few readers need."""
    records, num = [*kept, *(reject.record for reject in rejects)], len(kept)
    unplaced = [(None, None)] * (len(records) - len(places))
    rows = {
        "id": [item.id for item in records],
        "kept": [position < num for position in range(len(records))],
        "reason": ["cluster"] * num + [reject.reason for reject in rejects],
        "duplicate_of": [originals.get(item.id) for item in records],
        "similarity": [0.7 + 0.02 * (i % 15) if item.id in originals else None for i, item in enumerate(records)],
        "x": [x for x, _ in [*places.tolist(), *unplaced]],
        "y": [y for _, y in [*places.tolist(), *unplaced]],
        **columns,
    }
    types = [("id", pa.string()), ("kept", pa.bool_()), ("reason", pa.string()), ("duplicate_of", pa.string())]
    numbers = [(name, pa.float64()) for name in ("similarity", "x", "y")]
    table = pa.table({name: pa.array(rows.pop(name), kind) for name, kind in [*types, *numbers]} | rows)
    return table.sort_by("id")


def write_decisions(path: Path, num: int) -> None:
    """A map of this many places, a third of them chosen."""
    kept = [Record(f"{number:06}", []) for number in range(0, num, 3)]
    rejects = [Reject(Record(f"{number:06}", []), "curate", "not_selected") for number in range(num) if number % 3]
    write_table(path, decisions_of(kept, rejects, {}, np.random.default_rng(0).normal(size=(num, 2))))
