"""The lists of records to keep and to drop: files as people write them, and what does not fit is told."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from llmdistill.config import Curate
from llmdistill.curate.lists import listed_rows, read_list
from llmdistill.curate.pool import Pool, read_pool
from llmdistill.errors import InputError, UsageError
from llmdistill.record import record_id
from tests.runs import answered

QUESTIONS = ["한국의 수도는 어디입니까?", "What is 2 + 2?", "# Title\nTwo lines", "사과는 몇 개입니까?", "Cafe\u0301?"]


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Five prompts; the second has two samples."""
    records = [answered(question) for question in QUESTIONS]
    records.append(replace(records[1], id=record_id(records[1].prompt, sample=1)))
    return read_pool(records)


def keeps(path: Path, pool: Pool) -> list[str]:
    rows, drop = listed_rows(Curate(must_keep=str(path)), pool)
    assert drop == [] and rows == sorted(rows)
    return sorted({pool.questions[row] for row in rows})


def id_of(question: str) -> str:
    return record_id(answered(question).prompt)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("last", ["", "end"], ids=["no end of line", "end of line"])
def test_a_text_file_of_ids_and_prompts(pool, tmp_path, mark, end, last, capsys):
    lines = [QUESTIONS[0], "", id_of(QUESTIONS[3]).upper(), "  what is  2 + 2? "]
    path = tmp_path / "keep.txt"
    path.write_bytes(mark + (end.join(lines) + (end if last else "")).encode())
    assert keeps(path, pool) == sorted([QUESTIONS[0], QUESTIONS[3], QUESTIONS[1]])
    assert capsys.readouterr().err == ""


def test_a_prompt_names_all_its_samples_and_an_id_one_record(pool, tmp_path):
    path = tmp_path / "keep.txt"
    path.write_text(QUESTIONS[1])
    assert len(listed_rows(Curate(must_keep=str(path)), pool)[0]) == 2
    path.write_text(record_id(answered(QUESTIONS[1]).prompt, sample=1))
    rows, _ = listed_rows(Curate(must_keep=str(path)), pool)
    assert [pool.ids[row] for row in rows] == [path.read_text()]


def test_decomposed_hangul_and_accents_name_the_same_prompt(pool, tmp_path):
    path = tmp_path / "keep.txt"
    path.write_text(
        f"{unicodedata.normalize('NFD', QUESTIONS[0])}\n{unicodedata.normalize('NFC', QUESTIONS[4])}", "utf-8"
    )
    assert keeps(path, pool) == sorted([QUESTIONS[0], QUESTIONS[4]])


def test_rows_with_an_id_or_a_prompt(pool, tmp_path):
    rows = [
        {"id": id_of(QUESTIONS[0])},
        {"prompt": QUESTIONS[2], "id": "my own 17"},
        {"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": QUESTIONS[3]}]},
    ]
    path = tmp_path / "keep.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8-sig")
    assert keeps(path, pool) == sorted([QUESTIONS[0], QUESTIONS[2], QUESTIONS[3]])
    as_json = tmp_path / "keep.json"
    as_json.write_text(json.dumps(rows), "utf-8")
    assert keeps(as_json, pool) == keeps(path, pool)


def test_entries_that_match_nothing_are_counted_and_the_first_is_shown(pool, tmp_path, capsys):
    path = tmp_path / "drop.txt"
    path.write_text(f"없는 질문\n{QUESTIONS[0]}\n{'0' * 32}\n", "utf-8")
    keep, drop = listed_rows(Curate(must_drop=str(path)), pool)
    assert keep == [] and [pool.questions[row] for row in drop] == [QUESTIONS[0]]
    err = capsys.readouterr().err
    assert err == f"curate.must_drop: 2 of {path} match no record; the first is {path}:1 '없는 질문'\n"


def test_a_record_in_both_lists_is_named(pool, tmp_path):
    (tmp_path / "keep.txt").write_text(f"x\n{QUESTIONS[3]}", "utf-8")
    (tmp_path / "drop.jsonl").write_text(json.dumps({"id": id_of(QUESTIONS[3])}))
    with pytest.raises(UsageError) as caught:
        listed_rows(Curate(must_keep=str(tmp_path / "keep.txt"), must_drop=str(tmp_path / "drop.jsonl")), pool)
    assert f"record {id_of(QUESTIONS[3])} is in both lists" in str(caught.value)
    assert "keep.txt:2" in str(caught.value) and "drop.jsonl:1" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("keep.txt", b"ok\n\xff\xfe", "not UTF-8 text"),
        ("keep.jsonl", b'{"id": 1}\n', "keep.jsonl:1: a row has an id"),
        ("keep.jsonl", b'{"prompt": "x"}\n{"prompt": ""}\n', "keep.jsonl:2: a row has an id"),
        ("keep.jsonl", b"17\n", "keep.jsonl:1: a row has an id"),
        ("keep.jsonl", b'{"prompt": [1]}\n', "keep.jsonl:1: a row has an id"),
        ("keep.jsonl", b'{"prompt": \n', "keep.jsonl:1: invalid_json"),
        ("keep.json", b"{}", "a .json file of prompts is a list"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_list(tmp_path / name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_list_that_is_not_there_is_a_usage_error(pool, tmp_path):
    with pytest.raises(UsageError, match="there is no such list of curate.must_keep"):
        listed_rows(Curate(must_keep=str(tmp_path / "none.txt")), pool)


def test_no_lists_and_empty_lists_name_nothing(pool, tmp_path, capsys):
    assert listed_rows(Curate(), pool) == ([], [])
    (tmp_path / "empty.txt").write_bytes(b"\xef\xbb\xbf\r\n \n")
    assert listed_rows(Curate(must_keep=str(tmp_path / "empty.txt")), pool) == ([], [])
    assert capsys.readouterr().err == ""
