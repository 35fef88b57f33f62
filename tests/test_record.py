"""The record: what goes into Parquet comes out again, for us and for `datasets`; ids are the same everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdistill.record import (
    REJECT_SCHEMA,
    SCHEMA,
    SCHEMA_VERSION,
    Record,
    Reject,
    Selection,
    Source,
    TeacherInfo,
    Verdict,
    from_row,
    record_id,
    rejects_to_table,
    to_table,
)
from llmdistill.run.files import write_table
from tests.tiny import REPO

text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
maybe_text = st.none() | text
counts = st.integers(0, 2**63 - 1)
messages = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": text}), max_size=3)
records = st.builds(
    Record,
    id=text,
    prompt=messages,
    completion=messages,
    rationale=maybe_text,
    answer=maybe_text,
    reference=maybe_text,
    source=st.builds(Source, maybe_text, maybe_text, maybe_text, maybe_text),
    teacher=st.none()
    | st.builds(TeacherInfo, text, maybe_text, text, text, counts, counts, st.none() | st.floats(0, 9)),
    verdicts=st.lists(st.builds(Verdict, text, text, st.none() | st.floats(1, 5), text), max_size=3),
    selection=st.none() | st.builds(Selection, st.booleans(), text, maybe_text, st.none() | counts, st.none() | counts),
    meta=st.dictionaries(text, text, max_size=2).map(json.dumps),
)
in_a_folder = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@in_a_folder
@given(st.lists(records, max_size=4))
def test_records_come_back_from_parquet_as_they_were(tmp_path, rows):
    pq.write_table(to_table(rows), tmp_path / "r.parquet")
    table = pq.read_table(tmp_path / "r.parquet")
    assert (table.schema.names, table.schema.metadata) == (SCHEMA.names, SCHEMA.metadata)
    assert [from_row(row) for row in table.to_pylist()] == rows


@in_a_folder
@given(records, text, text, text)
def test_rejects_keep_the_record_and_the_reason(tmp_path, record, reason, detail, where):
    pq.write_table(rejects_to_table([Reject(record, "filter", reason, detail, where)]), tmp_path / "r.parquet")
    (row,) = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert from_row(row) == record
    assert row["reject"] == {"stage": "filter", "reason": reason, "detail": detail, "where": where}


def test_the_schema_carries_its_version():
    for schema in (SCHEMA, REJECT_SCHEMA):
        assert schema.metadata[b"llmdistill.schema_version"] == str(SCHEMA_VERSION).encode()
    assert SCHEMA.names == [
        *("id", "prompt", "completion", "rationale", "answer", "reference", "source", "teacher", "verdicts"),
        *("selection", "meta"),
    ]


PROMPT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "한글 \u2028 \U0001f34e \x00"}]


def test_an_id_is_the_same_in_another_process_and_forever():
    code = "import json,sys; from llmdistill.record import record_id; print(record_id(json.load(sys.stdin)))"
    for seed in ("0", "7"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(PROMPT),
            env={"PYTHONPATH": str(REPO), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == record_id(PROMPT)
    # Runs made before must stay readable: a change of this value is a change of schema.
    assert record_id([{"role": "user", "content": "가"}]) == "e3b90dcd94244c93649d072bb84033f7"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([("user", "a"), ("user", "b")], [("user", "a b")]),
        ([("user", "a"), ("user", "b")], [("user", "b"), ("user", "a")]),
        ([("user", "a")], [("system", "a")]),
        ([("user", "a")], [("user", "a ")]),
        ([("user", "é")], [("user", "e\u0301")]),
        ([("user", '"], ["user", "')], [("user", ""), ("user", "")]),
    ],
)
def test_prompts_that_differ_have_ids_that_differ(first, second):
    one, other = ([{"role": role, "content": content} for role, content in pairs] for pairs in (first, second))
    assert record_id(one) != record_id(other)


def test_meta_is_added_to_and_never_lost():
    record = Record("0", []).with_meta(a=1, 가="나").with_meta(b=[2])
    assert json.loads(record.meta) == {"a": 1, "가": "나", "b": [2]}


def test_the_score_is_that_of_the_last_verdict():
    def score(*scores: float | None) -> float | None:
        return Record("0", [], verdicts=[Verdict("j", "h", value, "x") for value in scores]).score

    assert (score(), score(2.0, None), score(2.0, None, 5.0)) == (None, None, 5.0)


def test_a_later_columns_are_ignored_and_missing_ones_are_empty():
    assert from_row({"id": "x", "prompt": None, "later": 1}) == Record("x", [])


def read_by_datasets(folder: Path, pattern: str) -> Any:
    return load_dataset("parquet", data_files=str(folder / pattern), split="train", cache_dir=str(folder / "cache"))


@pytest.mark.parametrize("kind", ["records", "rejects"])
def test_datasets_reads_every_kind_of_file_with_its_columns(tmp_path, kind):
    made = [Record(str(number), PROMPT, PROMPT[1:], answer="a") for number in range(3)]
    table = to_table(made) if kind == "records" else rejects_to_table([Reject(r, "filter", "x") for r in made])
    write_table(tmp_path / "r.parquet", table)
    read = read_by_datasets(tmp_path, "r.parquet")
    assert read.column_names == table.column_names
    assert [row["prompt"] for row in read] == [PROMPT] * 3


def test_datasets_reads_shards_of_which_one_is_empty(tmp_path):
    write_table(tmp_path / "part-00000.parquet", to_table([Record("a", PROMPT)]))
    write_table(tmp_path / "part-00001.parquet", to_table([]))
    assert read_by_datasets(tmp_path, "part-*.parquet").num_rows == 1
