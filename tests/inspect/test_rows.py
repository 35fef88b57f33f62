"""Finding records: conditions on any field, clear words for a wrong one, a sample that is the same each time."""

from __future__ import annotations

import pytest

from llmdistill.errors import UsageError
from llmdistill.fields import value_of
from llmdistill.inspect.rows import matching, read_rows, sample
from llmdistill.record import Reject, to_row
from tests.runs import answered, finish_stage

RECORDS = [answered(f"Question {number}?", f"Answer {number}: 답", score=float(number)) for number in range(1, 6)]
REJECTS = [Reject(answered("Bad?", score=0.5), "filter", "low_score", "0.50 < 3.0")]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    finish_stage(folder, "filter", [RECORDS[:2], RECORDS[2:]], REJECTS)
    return folder


@pytest.fixture
def rows(run_dir):
    return read_rows(run_dir, "filter")


def test_rows_of_all_shards_and_of_the_rejects(run_dir, rows):
    assert [row["id"] for row in rows] == [record.id for record in RECORDS]
    assert [row["reject"]["reason"] for row in read_rows(run_dir, "filter", rejects=True)] == ["low_score"]


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ([], [1, 2, 3, 4, 5]),
        (["score<3"], [1, 2]),
        (["score<=3"], [1, 2, 3]),
        (["score>3"], [4, 5]),
        (["score >= 3"], [3, 4, 5]),
        (["score=3"], [3]),
        (["score!=3"], [1, 2, 4, 5]),
        (["score>1", "score<4"], [2, 3]),
        (["answer~Answer 4"], [4]),
        (["answer~답"], [1, 2, 3, 4, 5]),
        (["question=Question 2?"], [2]),
        (["reply~Answer 5"], [5]),
        (["teacher.finish_reason=length"], []),
        (["teacher.prompt_tokens>9"], [1, 2, 3, 4, 5]),
        (["rationale~x"], []),
        (["selection.kept=true"], []),
        (["prompt~Question 1"], [1]),
        (["verdicts~'score': 4.0"], [4]),
    ],
    ids=str,
)
def test_conditions_pick_the_rows_they_say(rows, conditions, found):
    assert [int(value_of(row, "score")) for row in matching(rows, conditions)] == found


def test_a_condition_on_a_key_of_meta_passes_over_records_without_it():
    rows = [
        {**to_row(RECORDS[number]), "meta": meta} for number, meta in enumerate(['{"topic": "대수"}', "{}", '{"n": 3}'])
    ]
    assert matching(rows, ["meta.topic=대수"]) == rows[:1]
    assert matching(rows, ["meta.n>2"]) == rows[2:]
    assert matching(rows, ["meta~topic"]) == rows[:1]


def test_a_condition_on_the_reason_of_a_reject(run_dir):
    rejects = read_rows(run_dir, "filter", rejects=True)
    assert len(matching(rejects, ["reject.reason=low_score"])) == 1
    assert matching(rejects, ["reject.reason=refusal"]) == []


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("score", "a condition is written field<value"),
        ("", "a condition is written field<value"),
        ("score<many", "'many' is not a number"),
        ("scor<3", "records have no field scor -> there are id, prompt"),
        ("teacher.name=x", "records have no field teacher.name"),
        ("answer.x=1", "records have no field answer.x"),
        ("reject.reason=x", "records have no field reject.reason"),
        ("prompt<3", "prompt is not one value"),
        ("teacher=m", "teacher is not one value"),
        ("verdicts>=3", "verdicts is not one value"),
    ],
)
def test_a_wrong_condition_is_a_usage_error(rows, condition, message):
    with pytest.raises(UsageError) as caught:
        matching(rows, [condition])
    assert message in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize("stage", ["fliter", "../filter", "/etc", "", "train"])
def test_a_stage_without_records_is_refused_with_the_ones_there_are(run_dir, stage):
    with pytest.raises(UsageError, match="there are prompts, generate, filter, curate"):
        read_rows(run_dir, stage)


@pytest.mark.parametrize(("stage", "command"), [("curate", "curate"), ("prompts", "generate")])
def test_a_stage_that_has_not_run_names_the_command_to_run(tmp_path, stage, command):
    with pytest.raises(UsageError, match=f"run llmdistill {command} first"):
        read_rows(tmp_path, stage)


def test_a_sample_is_seeded_in_order_and_never_too_large():
    rows = [{"id": str(number)} for number in range(50)]
    first = sample(rows, 10, seed=1)
    assert first == sample(rows, 10, seed=1) != sample(rows, 10, seed=2)
    assert [int(row["id"]) for row in first] == sorted({int(row["id"]) for row in first}) and len(first) == 10
    assert sample(rows, 99) == rows
    assert sample([], 5) == []
