"""Bad rows become rejects with their reason and place; good rows come through byte for byte."""

from __future__ import annotations

import json
import random
import tracemalloc
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdistill.config import Fields, Prompts
from llmdistill.errors import InputError, UsageError
from llmdistill.generate.prompts import PromptSet, read_prompts
from llmdistill.record import from_row, record_id, rejects_to_table, to_table
from tests.tiny import PROMPTS

GOOD = b'{"prompt": "a good row"}'


def read(path: Path, **options: object) -> PromptSet:
    return read_prompts(Prompts(path=str(path), **{"held_out": 0.0, **options}))  # type: ignore[arg-type]


def write(folder: Path, *lines: bytes, name: str = "p.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def text_of(found: PromptSet) -> list[str]:
    return [record.question for record in found.pool]


BAD_ROWS = {
    b'{"prompt": "a"': "invalid_json",
    b"prompt: a": "invalid_json",
    b'{"prompt": "caf\xe9"}': "invalid_utf8",
    b'\xff\xfe{\x00"\x00': "invalid_utf8",
    b'{"prompt": "a\x00b"}': "invalid_json",
    b"\x00\x00\x00\x00": "invalid_json",
    b'{"prompt": "a", "reference": NaN}': "invalid_json",
    b'{"prompt": "a", "reference": -Infinity}': "invalid_json",
    b'{"prompt": "\\ud800 alone"}': "invalid_unicode",
    b'{"prompt": "a", "prompt": "b"}': "invalid_json",
    b'{"prompt": "a", "x": {"k": 1, "k": 2}}': "invalid_json",
    b"[" * 10_000 + b"]" * 10_000: "invalid_json",
    b'{"prompt": ' * 10_000 + b"1" + b"}" * 10_000: "invalid_json",
    b'{"prompt": ' + b"9" * 5000 + b"}": "invalid_json",
    b'{"prompt": ""}': "empty_prompt",
    b'{"prompt": " \\n\\t\\u3000"}': "empty_prompt",
    b'{"messages": []}': "empty_prompt",
    b'{"messages": [{"role": "user", "content": ""}]}': "empty_prompt",
    b'{"prompt": 0}': "wrong_type",
    b'{"prompt": 12}': "wrong_type",
    b'{"prompt": true}': "wrong_type",
    b'{"prompt": {}}': "wrong_type",
    b'{"messages": ["hello"]}': "wrong_type",
    b'{"messages": [{"role": "user"}]}': "wrong_type",
    b'{"messages": [{"role": "user", "content": ["part"]}]}': "wrong_type",
    b'{"messages": [{"role": "robot", "content": "x"}]}': "unknown_role",
    b'{"messages": [{"role": ["user"], "content": "x"}]}': "unknown_role",
    b'{"messages": [{"role": "\\udfff", "content": "x"}]}': "unknown_role",
    b'{"messages": [{"content": "x"}]}': "unknown_role",
    b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}': "last_message_not_user",
    b'{"prompt": null}': "no_prompt",
    b'{"text": "x"}': "no_prompt",
    b'{"\\ud800": "x"}': "no_prompt",
    b"{}": "no_prompt",
    b"[1, 2]": "not_an_object",
    b'"text"': "not_an_object",
    b"null": "not_an_object",
    GOOD: "duplicate_prompt",
}


@pytest.mark.parametrize("bad", BAD_ROWS, ids=lambda bad: repr(bad[:50]))
def test_a_bad_row_is_a_reject_with_reason_and_place_and_good_rows_stay(tmp_path, bad):
    path = write(tmp_path, GOOD, bad, b'{"prompt": "another"}')
    found = read(path)
    assert text_of(found) == ["a good row", "another"]
    (reject,) = found.rejects
    assert (reject.reason, reject.where) == (BAD_ROWS[bad], f"{path}:2")
    (row,) = rejects_to_table(found.rejects).to_pylist()
    assert row["reject"]["where"] == f"{path}:2"
    json.loads(row["meta"])


def test_a_duplicate_names_the_place_of_the_first(tmp_path):
    path = write(tmp_path, b'{"prompt": "x"}', GOOD, GOOD)
    assert read(path).rejects[0].detail == f"same as {path}:2"


def test_a_duplicate_of_a_held_out_row_names_that_file_and_row(tmp_path):
    held_out = write(tmp_path, b'{"prompt": "x"}', GOOD, name="held.jsonl")
    found = read(write(tmp_path, GOOD, b'{"prompt": "y"}'), held_out_path=str(held_out))
    assert found.rejects[0].detail == f"same as {held_out}:2"
    assert [record.question for record in found.held_out] == ["x", "a good row"]


def test_a_key_given_twice_is_named(tmp_path):
    found = read(write(tmp_path, GOOD, b'{"prompt": "a", "reference": "b", "reference": "c"}'))
    assert "'reference' stands there twice" in found.rejects[0].detail


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"], ids=repr)
def test_separators_inside_a_line_are_text_and_do_not_split_it(tmp_path, separator):
    text = f"one{separator}two"
    raw = json.dumps({"prompt": text}, ensure_ascii=separator < " ").encode()
    assert text_of(read(write(tmp_path, raw, GOOD))) == [text, "a good row"]


def test_byte_order_mark_and_carriage_returns_are_accepted(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n')
    found = read(path)
    assert (text_of(found), found.rejects) == (["a", "b"], [])
    assert [record.source.key for record in found.pool] == ["1", "3"]


def test_the_last_line_needs_no_line_feed(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(GOOD + b'\n{"prompt": "last"}')
    assert text_of(read(path)) == ["a good row", "last"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"], ids=repr)
def test_an_empty_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="the file is empty") as caught:
        read(path)
    assert (caught.value.exit_code, caught.value.where) == (2, str(path))


def test_zero_usable_prompts_names_reasons_and_the_first_row(tmp_path):
    path = write(tmp_path, b"", b"{}", b"nonsense")
    with pytest.raises(InputError, match="invalid_json, no_prompt") as caught:
        read(path)
    assert f"{path}:2" in str(caught.value)


def test_everything_held_out_is_said_to_be_so(tmp_path):
    with pytest.raises(InputError, match="all 1 prompts are held out"):
        read(write(tmp_path, GOOD), held_out=1.0)


def test_a_missing_file_names_the_nearest_one(tmp_path, monkeypatch):
    write(tmp_path, GOOD, name="prompts.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="promts.jsonl: there is no such prompts file -> did you mean prompts.jsonl?"):
        read(Path("promts.jsonl"))


@pytest.mark.parametrize("name", ["x" * 300, "nul\x00byte"])
def test_a_path_that_cannot_be_opened_is_a_usage_error(name):
    with pytest.raises(UsageError):
        read(Path(name))


@pytest.mark.parametrize("name", ["p.csv", "p", "p.jsonl.gz"])
def test_an_unknown_kind_of_file_names_those_there_are(tmp_path, name):
    with pytest.raises(InputError, match=r"give a \.jsonl, \.json or \.parquet file"):
        read(write(tmp_path, GOOD, name=name))


def test_a_20_mb_line_is_a_reject_and_memory_stays_flat(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(GOOD + b'\n{"prompt": "' + b"x" * 20_000_000 + b'"}\n{"prompt": "after"}\n')
    tracemalloc.start()
    found = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (text_of(found), found.rejects[0].reason) == (["a good row", "after"], "line_too_long")
    assert found.rejects[0].where == f"{path}:2"
    assert peak < 6_000_000  # the longest line allowed is 1 MB


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""], ids=repr)
@pytest.mark.parametrize("size", range(96, 106))
def test_the_line_limit_is_exact_and_loses_no_neighbour(tmp_path, size, ending):
    line = b'{"prompt": "' + b"y" * (size - 14) + b'"}'
    assert len(line) == size
    path = tmp_path / "p.jsonl"
    path.write_bytes(GOOD + b"\n" + line + ending)
    found = read(path, max_line_bytes=100)
    assert len(found.pool) == (2 if size + (ending == b"\r\n") <= 100 else 1)
    assert found.num_rows == 2


def test_long_lines_in_a_row_are_counted_one_by_one(tmp_path):
    lines = [b"z" * length for length in (100, 101, 102, 200, 201, 202, 203, 300, 303)]
    found = read(write(tmp_path, *lines, GOOD), max_line_bytes=100)
    assert [reject.where.rpartition(":")[2] for reject in found.rejects] == [str(row) for row in range(1, 10)]
    assert text_of(found) == ["a good row"]


line_pieces = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([*BAD_ROWS, b"\xef\xbb\xbf", b"\r", b'{"prompt": "', b'"}', b"\\ud800", b"NaN"]),
    st.text(min_size=1, max_size=30).map(lambda text: json.dumps({"prompt": text}).encode()),
    st.dictionaries(
        st.sampled_from(["prompt", "messages", "id", "reference", "instruction", "input"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=5,
        ),
    ).map(lambda row: json.dumps(row).encode()),
)
lines_strategy = st.lists(st.lists(line_pieces, max_size=3).map(b"".join), min_size=4, max_size=20)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=lines_strategy)
def test_no_bytes_raise_every_line_is_accounted_for_and_good_rows_round_trip(tmp_path, lines):
    path = tmp_path / "fuzz.jsonl"
    content = b'{"prompt": "an anchor"}\n' + b"\n".join(lines)
    path.write_bytes(content)
    found = read(path, max_line_bytes=2_000)
    rows = [line for line in content.split(b"\n") if line.strip() or len(line) > 2_000]
    assert found.num_rows == len(rows)
    places = {int(reject.where.rpartition(":")[2]) for reject in found.rejects}
    assert len(places) == len(found.rejects)
    pq.write_table(to_table(found.pool), tmp_path / "pool.parquet")
    pq.write_table(rejects_to_table(found.rejects), tmp_path / "rejects.parquet")
    assert [from_row(row) for row in pq.read_table(tmp_path / "pool.parquet").to_pylist()] == found.pool


def test_real_prompts_come_through_byte_for_byte():
    wanted = [json.loads(line)["prompt"] for line in PROMPTS.read_bytes().split(b"\n") if line]
    assert text_of(read(PROMPTS)) == wanted
    back = [from_row(row).question for row in to_table(read(PROMPTS).pool).to_pylist()]
    assert back == wanted


def test_the_held_out_prompts_stay_held_out_when_the_file_grows(tmp_path):
    lines = PROMPTS.read_bytes().splitlines()
    half = read(write(tmp_path, *lines[:200]), held_out=0.2)
    whole = read(write(tmp_path, *lines), held_out=0.2)
    old = {record.id for record in half.held_out} | {record.id for record in half.pool}
    assert {record.id for record in half.held_out} == {record.id for record in whole.held_out} & old
    assert 10 < len(half.held_out) < len(whole.held_out)


def test_held_out_and_pool_share_nothing_and_miss_nothing():
    found = read(PROMPTS, held_out=0.3)
    pool, held_out = ({record.id for record in part} for part in (found.pool, found.held_out))
    assert not pool & held_out
    assert len(pool) + len(held_out) == found.num_rows == 427
    assert 0.2 < len(held_out) / 427 < 0.4


def test_what_is_held_out_is_decided_by_content_not_by_order_or_name(tmp_path):
    lines = [json.dumps({"prompt": json.loads(line)["prompt"]}).encode() for line in PROMPTS.read_bytes().splitlines()]
    shuffled = random.Random(1).sample(lines, len(lines))
    first, second = read(PROMPTS, held_out=0.1), read(write(tmp_path, *shuffled, name="다른.jsonl"), held_out=0.1)
    assert {record.id for record in first.held_out} == {record.id for record in second.held_out}
    assert {record.id: record.question for record in first.pool} == {
        record.id: record.question for record in second.pool
    }


def test_a_larger_share_holds_out_all_that_a_smaller_one_does():
    small, large = ({record.id for record in read(PROMPTS, held_out=share).held_out} for share in (0.1, 0.2))
    assert small < large


def test_a_file_of_its_own_can_be_held_out(tmp_path):
    held_out = write(tmp_path, b'{"prompt": "measure me"}', b"broken", name="held.jsonl")
    found = read(write(tmp_path, GOOD), held_out_path=str(held_out), held_out=0.9)
    assert [record.question for record in found.held_out] == ["measure me"]
    assert text_of(found) == ["a good row"]
    assert [reject.where for reject in found.rejects] == [f"{held_out}:2"]


def test_hangul_prompts_and_paths(tmp_path):
    folder = tmp_path / "자료 모음"
    folder.mkdir()
    path = write(folder, '{"prompt": "한글로 답하세요.\u200b 각"}'.encode(), b"{", name="질문.jsonl")
    found = read(path)
    assert text_of(found) == ["한글로 답하세요.\u200b 각"]
    assert found.pool[0].source.split == "질문"
    assert found.rejects[0].where == f"{path}:2"


def test_limit_takes_the_first_usable_rows(tmp_path):
    lines = [b'{"prompt": "%d"}' % number for number in range(9)]
    assert text_of(read(write(tmp_path, b"{", *lines), limit=3)) == ["0", "1", "2"]


def test_a_system_message_is_put_before_prompts_that_have_none(tmp_path):
    own = b'{"messages": [{"role": "system", "content": "mine"}, {"role": "user", "content": "x"}]}'
    found = read(write(tmp_path, GOOD, own), system="be brief")
    assert [record.prompt[0]["content"] for record in found.pool] == ["be brief", "mine"]


def test_usual_and_named_columns(tmp_path):
    path = write(tmp_path, b'{"instruction": "Add.", "input": "1 2", "output": "3"}', b'{"q": "x", "question": "y"}')
    found = read(path)
    assert [(record.question, record.reference) for record in found.pool] == [("Add.\n\n1 2", "3"), ("y", None)]
    assert text_of(read(path, fields=Fields(prompt="q"))) == ["x"]


@pytest.mark.parametrize(("raw", "key"), [(b"0", "0"), (b'"a"', "a"), (b'{"n": 1}', '{"n": 1}'), (b'"\\ud800"', "?")])
def test_a_rows_own_id_is_kept_as_text(tmp_path, raw, key):
    found = read(write(tmp_path, b'{"prompt": "x", "id": ' + raw + b"}"))
    assert to_table(found.pool).to_pylist()[0]["source"]["key"] == key


class TestJsonList:
    def test_good_rows_and_bad_rows(self, tmp_path):
        path = write(tmp_path, b'\xef\xbb\xbf[{"prompt": "a"}, 3, {"prompt": "a"}]', name="p.json")
        found = read(path)
        assert text_of(found) == ["a"]
        assert [(reject.reason, reject.where) for reject in found.rejects] == [
            ("not_an_object", f"{path}:2"),
            ("duplicate_prompt", f"{path}:3"),
        ]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b'[{"prompt": "a"}', "line 2"),
            (b'{"prompt": "a"}', "is a list"),
            (b"", "Expecting value"),
            (b"[" * 10_000, "recursion"),
            (b'[{"prompt": "caf\xe9"}]', "utf-8"),
            (b'[{"prompt": NaN}]', "NaN is not JSON"),
            (b'[{"prompt": "a", "prompt": "b"}]', "'prompt' stands there twice"),
        ],
        ids=lambda value: repr(value[:30]),
    )
    def test_a_broken_file_is_one_clear_line(self, tmp_path, content, message):
        path = write(tmp_path, content, name="p.json")
        with pytest.raises(InputError, match=message) as caught:
            read(path)
        assert caught.value.where == str(path)
        assert "\n" not in str(caught.value)


class TestParquet:
    def test_the_same_rows_give_the_same_records(self, tmp_path):
        rows = [json.loads(line) for line in PROMPTS.read_bytes().splitlines()]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
        assert read(tmp_path / "prompts.parquet").pool == read(PROMPTS).pool

    def test_messages_columns_are_read(self, tmp_path):
        path = tmp_path / "p.parquet"
        pq.write_table(pa.table({"messages": [[{"role": "user", "content": "hi"}]]}), path)
        assert text_of(read(path)) == ["hi"]

    def test_bad_rows_of_every_column_type_are_rejects(self, tmp_path):
        columns = {
            "prompt": ["good", None, "", "good"],
            "reference": [datetime(2026, 1, 1)] * 4,
            "id": [b"\xff\x00"] * 4,
        }
        pq.write_table(pa.table(columns), tmp_path / "p.parquet")
        found = read(tmp_path / "p.parquet")
        assert [reject.reason for reject in found.rejects] == ["no_prompt", "empty_prompt", "duplicate_prompt"]
        to_table(found.pool), rejects_to_table(found.rejects)

    def test_text_that_is_not_utf8_is_a_reject(self, tmp_path):
        offsets = pa.py_buffer(b"".join(number.to_bytes(4, "little") for number in (0, 4, 8)))
        column = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"good\xff\xfe\xfd\xfc"))
        pq.write_table(pa.table({"prompt": column}), tmp_path / "p.parquet")
        found = read(tmp_path / "p.parquet")
        assert text_of(found) == ["good"]
        assert [(reject.reason, reject.where[-2:]) for reject in found.rejects] == [("unreadable_row", ":2")]

    @pytest.mark.parametrize("damage", ["not parquet", "torn", "empty"])
    def test_a_broken_file_is_one_clear_line(self, tmp_path, damage):
        path = tmp_path / "p.parquet"
        pq.write_table(pa.table({"prompt": ["a"] * 100}), path)
        data = path.read_bytes()
        path.write_bytes({"not parquet": b"hello" * 99, "torn": data[: len(data) // 2], "empty": b""}[damage])
        with pytest.raises(InputError, match="not readable as Parquet") as caught:
            read(path)
        assert (caught.value.exit_code, caught.value.where) == (2, str(path))


@given(st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=4))
def test_the_same_prompt_has_the_same_id_and_another_one_another(texts):
    first = [{"role": "user", "content": text} for text in texts]
    again = [{"content": text, "role": "user"} for text in texts]
    assert record_id(first) == record_id(again)
    assert record_id(first, sample=1) != record_id(first)
    assert record_id([*first, {"role": "user", "content": "more"}]) != record_id(first)
    assert record_id([{"role": "system", "content": text} for text in texts]) != record_id(first)
