"""The stage verifies before it judges: wrong answers go with their reason, and no judge is asked about them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmdistill.config import Api, Filter, Judge, Model, Pipeline, Verify
from llmdistill.errors import LlmdistillError
from llmdistill.filter import stage as filter_stage
from llmdistill.record import Record
from llmdistill.run.manifest import Manifest
from llmdistill.run.stage import read_shards
from llmdistill.verify import verify
from tests.bench.verifier_agreement import Solution, solutions
from tests.runs import answered, finish_stage, pipeline
from tests.verify.test_agreement import SAMPLE

CLOSED = Model(model="judge", engine="openai", api=Api(base_url="http://127.0.0.1:9/v1", patience=0))


def asked(question: str, answer: str, reference: str | None) -> Record:
    return replace(answered(question, answer), reference=reference)


RECORDS = [
    asked("What is six times seven, please?", "42", "#### 42"),
    asked("What is six times eight, please?", "42", "#### 48"),
    asked("What is six times nine, please?", "I don't know.", "#### 54"),
    asked("Six times ten makes how many?", "60 apples", "60"),
    asked("Nobody knows the answer to this one, right?", "5", None),
    asked("An answer that is empty, what of it?", "", "5"),
]


def run(run_dir: Path, records: list[Record], **sections: object) -> tuple[Pipeline, Manifest]:
    given = pipeline(run_dir, **sections)
    half = len(records) // 2
    finish_stage(run_dir, "generate", [records[:half], records[half:]])
    return given, filter_stage.run(given)


def kept(run_dir: Path) -> list[Record]:
    return [record for shard in read_shards(run_dir, "filter") for record in shard]


def judged_keys(run_dir: Path) -> list[str]:
    """Keys of the rows that an engine wrote: only those have a finish reason."""
    lines = [
        line for file in (run_dir / "filter" / "journal").glob("*.jsonl") for line in file.read_text().splitlines()
    ]
    rows = [json.loads(line) for line in lines]
    return [row["key"] for row in rows if "ok" not in row]


def test_wrong_and_undecided_answers_are_rejected_with_their_reason(tmp_path: Path) -> None:
    _, manifest = run(tmp_path, RECORDS, filter=Filter(verify=Verify(kind="math"), judge=None))
    assert manifest.counts.reasons == {"empty": 1, "unverifiable": 2, "wrong_answer": 1}
    assert manifest.counts.input == manifest.counts.kept + manifest.counts.rejected == 6
    assert [record.answer for record in kept(tmp_path)] == ["42", "60 apples"]
    assert [v.outcome for record in kept(tmp_path) for v in record.verdicts] == ["correct", "correct"]


def test_undecided_answers_are_kept_when_told(tmp_path: Path) -> None:
    _, manifest = run(tmp_path, RECORDS, filter=Filter(verify=Verify(kind="math", undecided="keep"), judge=None))
    assert manifest.counts.reasons == {"empty": 1, "wrong_answer": 1}
    assert [v.outcome for record in kept(tmp_path) for v in record.verdicts].count("undecided") == 2


def test_a_verdict_is_no_score(tmp_path: Path) -> None:
    run(tmp_path, RECORDS, filter=Filter(verify=Verify(kind="math"), judge=None))
    assert all(record.score is None for record in kept(tmp_path))


def test_no_judge_is_asked_when_every_answer_is_wrong(tmp_path: Path) -> None:
    wrong = [asked(f"Question number {number}, how much is it?", "1", "2") for number in range(4)]
    _, manifest = run(tmp_path, wrong, filter=Filter(verify=Verify(kind="math"), judge=Judge(model=CLOSED)))
    assert manifest.counts.reasons == {"wrong_answer": 4}
    assert judged_keys(tmp_path) == []


def test_every_answer_is_verified_before_the_judge_is_asked(tmp_path: Path) -> None:
    settings = Filter(verify=Verify(kind="math"), judge=Judge(model=CLOSED))
    with pytest.raises(LlmdistillError):
        run(tmp_path, RECORDS, filter=settings)
    rows = [file.read_text() for file in (tmp_path / "filter" / "journal").glob("*.jsonl")]
    assert sum(text.count('"ok"') for text in rows) == 5


def test_the_judge_is_asked_about_right_answers_only(tmp_path: Path, tiny_model: Path) -> None:
    judge = Judge(model=Model(model=str(tiny_model)), min_score=0)
    _, manifest = run(tmp_path, RECORDS, filter=Filter(verify=Verify(kind="math"), judge=judge))
    right = {RECORDS[0].id, RECORDS[3].id}
    assert {key.split("-")[0] for key in judged_keys(tmp_path)} == right
    counts = manifest.counts
    assert counts.input == counts.kept + counts.rejected + counts.failed == 6


def test_a_new_setting_for_the_undecided_verifies_nothing_again(tmp_path: Path) -> None:
    given, _ = run(tmp_path, RECORDS, filter=Filter(verify=Verify(kind="math"), judge=None))
    (journal,) = (tmp_path / "filter" / "journal").glob("*.jsonl")
    before = journal.read_bytes()
    again = Filter(verify=Verify(kind="math", undecided="keep"), judge=None)
    assert filter_stage.run(given.model_copy(update={"filter": again})).counts.kept == 4
    assert journal.read_bytes() == before


def test_real_solutions_leave_as_many_as_are_right(tmp_path: Path) -> None:
    def record(item: Solution) -> Record:
        return asked(f"Question {item.key} of the sample, how many?", item.answer, item.reference)

    settings = Verify(kind="math")
    given = list(solutions(SAMPLE))
    _, manifest = run(tmp_path, [record(item) for item in given], filter=Filter(verify=settings, judge=None))
    right = {item.answer for item in given if item.is_correct}
    assert {record.answer for record in kept(tmp_path)} <= right
    wrong = sum(verify(item.answer, item.reference, settings).ok is False for item in given)
    reasons = dict(manifest.counts.reasons)
    assert wrong - sum(reasons.get(name, 0) for name in ("repetition_loop", "truncated")) <= reasons["wrong_answer"]
    assert reasons["wrong_answer"] <= wrong
    assert manifest.counts.kept + manifest.counts.rejected == 300
