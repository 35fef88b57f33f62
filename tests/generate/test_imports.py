"""Imported answers: four forms, one record; samples of a prompt stay together; nothing is lost and nothing is asked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdistill.config import Fields, Generate, Pipeline, Prompts
from llmdistill.errors import InputError
from llmdistill.generate.imports import read_imports
from llmdistill.generate.prompts import PromptSet, read_prompts
from llmdistill.generate.stage import read as read_stage
from llmdistill.generate.stage import run as run_generate
from llmdistill.record import Record, record_id, rejects_to_table, to_table
from llmdistill.run.files import read_table
from llmdistill.run.stage import read_records, read_shards
from tests.runs import pipeline

Row = dict[str, object]

USER, ANSWER = "2 더하기 3은? {{ prompt }} </s>", "5입니다."
ASKED, SAID = {"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}
SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]
GOOD: Row = {"prompt": "a good row", "completion": "yes"}


def write(folder: Path, *rows: object, name: str = "answers.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def read(path: Path, **options: object) -> PromptSet:
    return read_imports(Prompts(path=str(path), **{"held_out": 0.0, **options}))  # type: ignore[arg-type]


def read_row(folder: Path, row: Row, **options: object) -> Record:
    (record,) = read(write(folder, row), **options).pool
    return record


def importing(folder: Path, *rows: object, prompts: Row | None = None, **options: object) -> Pipeline:
    """A pipeline that imports rows with the template of worked solutions."""
    path = write(folder, *rows)
    generate = Generate(**{"mode": "import", "template": "prompts/en/worked.yaml", **options})  # type: ignore[arg-type]
    given = Prompts(path=str(path), **{"held_out": 0.0, **(prompts or {})})  # type: ignore[arg-type]
    return pipeline(folder / "run", prompts=given, generate=generate)


def generated(given: Pipeline) -> tuple[list[Record], list[Row]]:
    """Records that `generate` kept, and the rows of its rejects."""
    read_stage(given)
    manifest = run_generate(given)
    counts = manifest.counts
    assert counts.input == counts.kept + counts.rejected + counts.failed
    kept = [record for shard in read_shards(given.run_path, "generate") for record in shard]
    return kept, read_table(given.run_path / "generate" / "rejects.parquet").to_pylist()


FORMS: dict[str, Row] = {
    "messages": {"messages": [ASKED, SAID]},
    "texts": {"prompt": USER, "completion": ANSWER},
    "lists": {"prompt": [ASKED], "completion": [SAID]},
    "list and text": {"prompt": [ASKED], "completion": ANSWER},
    "Alpaca": {"instruction": USER, "input": "", "output": ANSWER},
    "Alpaca without input": {"instruction": USER, "output": ANSWER},
    "ShareGPT": {"conversations": [{"from": "human", "value": USER}, {"from": "gpt", "value": ANSWER}]},
    "ShareGPT, roles of chat": {
        "conversations": [{"from": "user", "value": USER}, {"from": "assistant", "value": ANSWER}]
    },
    "chat in conversations": {"conversations": [ASKED, SAID]},
    "a whole conversation as prompt": {"prompt": [ASKED, SAID]},
    "pair beside an unused conversation": {"prompt": USER, "completion": ANSWER, "messages": EARLIER},
    "conversation beside its prompt": {"prompt": USER, "prompt_id": 7, "messages": [ASKED, SAID]},
    "empty columns of other forms": {"messages": [ASKED, SAID], "prompt": None, "conversations": None, "output": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_record(tmp_path, form):
    record = read_row(tmp_path, FORMS[form])
    assert (record.prompt, record.completion) == ([ASKED], [SAID])
    assert record.id == record_id([ASKED])
    assert record.reference is None


def test_the_input_of_an_alpaca_row_follows_the_instruction(tmp_path):
    record = read_row(tmp_path, {"instruction": "더하세요.", "input": "1 2", "output": "3"})
    assert record.question == "더하세요.\n\n1 2"


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_of_a_conversation_the_last_turn_is_the_answer(tmp_path, key):
    speakers = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [SYSTEM, *EARLIER, ASKED, SAID]
    if key == "conversations":
        turns = [{"from": speakers[turn["role"]], "value": turn["content"]} for turn in turns]
    record = read_row(tmp_path, {key: turns})
    assert (record.prompt, record.completion) == ([SYSTEM, *EARLIER, ASKED], [SAID])


def test_a_question_that_nobody_answered_at_the_end_is_not_trained_on(tmp_path):
    record = read_row(tmp_path, {"messages": [ASKED, SAID, {"role": "user", "content": "And then?"}]})
    assert (record.prompt, record.completion) == ([ASKED], [SAID])


def test_a_system_message_comes_from_the_conversation_else_the_row_else_the_settings(tmp_path):
    def system(row: Row) -> str:
        return read_row(tmp_path, row, system="of the settings").prompt[0]["content"]

    assert system({"messages": [SYSTEM, ASKED, SAID], "system": "of the row"}) == "Be brief."
    assert system({"instruction": USER, "output": ANSWER, "system": "of the row"}) == "of the row"
    assert system({"instruction": USER, "output": ANSWER}) == "of the settings"


def test_named_columns_are_read_whatever_else_the_row_has(tmp_path):
    row: Row = {"q": USER, "a": ANSWER, "gold": 5, "prompt": "x", "completion": "y", "reference": "z", "messages": []}
    record = read_row(tmp_path, row, fields=Fields(prompt="q", completion="a", reference="gold"))
    assert (record.prompt, record.completion, record.reference) == ([ASKED], [SAID], "5")
    chat: Row = {"dialogue": [*EARLIER, ASKED, SAID]}
    assert read_row(tmp_path, chat, fields=Fields(prompt="dialogue")).prompt == [*EARLIER, ASKED]
    dolly: Row = {"instruction": USER, "response": ANSWER}
    assert read_row(tmp_path, dolly, fields=Fields(completion="response")).completion == [SAID]


@pytest.mark.parametrize("name", ["answer", "output", "response", "ground_truth", "solution"])
@pytest.mark.parametrize("form", ["messages", "Alpaca", "texts"])
def test_a_column_that_may_hold_an_answer_is_never_taken_for_the_gold_one(tmp_path, name, form):
    assert read_row(tmp_path, {name: "7", **FORMS[form]}).reference is None
    assert read_row(tmp_path, {name: "7", **FORMS[form], "reference": "5"}).reference == "5"


TOLD = {"from": "gpt", "value": "y"}
BAD: dict[str, tuple[object, str]] = {
    "no form": ({"text": "x"}, "no_prompt"),
    "nothing": ({}, "no_prompt"),
    "no object": ([1], "not_an_object"),
    "only a prompt": ({"prompt": "x"}, "no_completion"),
    "question and answer": ({"question": "x", "answer": "y"}, "no_completion"),
    "instruction alone": ({"instruction": "x", "input": "y"}, "no_completion"),
    "nobody answers": ({"messages": [ASKED]}, "no_completion"),
    "completion by the user": ({"prompt": [ASKED], "completion": [ASKED]}, "no_completion"),
    "completion blank": ({"prompt": "x", "completion": " \n\u3000"}, "empty_completion"),
    "completion without messages": ({"prompt": "x", "completion": []}, "empty_completion"),
    "answer without text": ({"messages": [ASKED, {"role": "assistant", "content": None}]}, "wrong_type"),
    "answer in parts": ({"messages": [ASKED, {"role": "assistant", "content": [{"text": "x"}]}]}, "wrong_type"),
    "a number for an answer": ({"prompt": "x", "completion": 5}, "wrong_type"),
    "a number for an instruction": ({"instruction": 5, "output": "x"}, "wrong_type"),
    "no messages": ({"messages": []}, "empty_prompt"),
    "no list of messages": ({"messages": {"role": "user"}}, "wrong_type"),
    "texts for messages": ({"messages": ["Hello", "Hi"]}, "wrong_type"),
    "answer first": ({"messages": [SAID]}, "empty_prompt"),
    "system asks": ({"messages": [SYSTEM, SAID]}, "last_message_not_user"),
    "two answers": ({"messages": [ASKED, SAID, SAID]}, "last_message_not_user"),
    "a tool": ({"messages": [ASKED, {"role": "tool", "content": "x"}, SAID]}, "unknown_role"),
    "an unknown speaker": ({"conversations": [{"from": "bard", "value": "x"}, TOLD]}, "unknown_role"),
    "a speaker that is a list": ({"conversations": [{"from": ["human"], "value": "x"}, TOLD]}, "unknown_role"),
    "prompt blank": ({"prompt": " ", "completion": "x"}, "empty_prompt"),
    "history": ({"instruction": "x", "output": "y", "history": [["a", "b"]]}, "wrong_type"),
    "the same again": (GOOD, "duplicate_answer"),
    "the same in another form": ({"instruction": "a good row", "output": " yes\n"}, "duplicate_answer"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_a_reject_with_reason_and_place_and_good_rows_stay(tmp_path, name):
    bad, reason = BAD[name]
    path = write(tmp_path, GOOD, bad, {"prompt": "another", "completion": "no"})
    found = read(path)
    assert [record.question for record in found.pool] == ["a good row", "another"]
    (reject,) = found.rejects
    assert (reject.reason, reject.where) == (reason, f"{path}:2")
    assert rejects_to_table(found.rejects).num_rows == 1


def test_a_lone_surrogate_in_an_answer_is_a_reject(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "x", "completion": "\\ud800"}\n{"prompt": "x", "completion": "y"}\n')
    assert [reject.reason for reject in read(path).rejects] == ["invalid_unicode"]


def test_parquet_is_read_like_json(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"prompt": None, "completion": None, **FORMS["messages"]}]), path)
    (record,) = read(path).pool
    assert (record.prompt, record.completion) == ([ASKED], [SAID])


def test_nothing_usable_names_the_file_and_why(tmp_path):
    with pytest.raises(InputError, match=r"answers.jsonl: no usable prompt \(no_completion"):
        read(write(tmp_path, {"prompt": "x"}))


def test_rows_with_the_same_prompt_are_samples_of_it(tmp_path):
    rows = [{"prompt": prompt, "completion": text} for text in ("하나", "둘", "셋") for prompt in ("가", "나")]
    found = read(write(tmp_path, *rows, rows[0]))
    for prompt in ("가", "나"):
        messages = [{"role": "user", "content": prompt}]
        samples = [record for record in found.pool if record.prompt == messages]
        assert [record.reply for record in samples] == ["하나", "둘", "셋"]
        assert [record.id for record in samples] == [record_id(messages, sample) for sample in range(3)]
        assert [json.loads(record.meta)["sample"] for record in samples] == [0, 1, 2]
    assert [(reject.reason, reject.detail[-2:]) for reject in found.rejects] == [("duplicate_answer", ":1")]


PROMPT_TEXTS = [f"Question {number}?" for number in range(60)]


@given(counts=st.lists(st.integers(1, 4), min_size=60, max_size=60), shuffled=st.randoms())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_prompt_is_held_out_as_a_whole_however_many_samples_it_has(tmp_path, counts, shuffled):
    rows = [
        {"prompt": text, "completion": f"Answer {sample}."}
        for text, count in zip(PROMPT_TEXTS, counts, strict=True)
        for sample in range(count)
    ]
    shuffled.shuffle(rows)
    found = read(write(tmp_path, *rows), held_out=0.3)
    plain = write(tmp_path, *({"prompt": text} for text in PROMPT_TEXTS), name="plain.jsonl")
    expected = {record.id for record in read_prompts(Prompts(path=str(plain), held_out=0.3)).held_out}
    assert {record.id for record in found.held_out} == expected
    assert len(found.held_out) == len(expected) > 5
    assert not expected & {record_id(record.prompt) for record in found.pool}
    assert found.num_rows == len(rows)
    assert Counter(reject.reason for reject in found.rejects) == Counter(
        {"held_out_sample": sum(count for text, count in zip(PROMPT_TEXTS, counts, strict=True)
                                if record_id([{"role": "user", "content": text}]) in expected) - len(expected)}
    )  # fmt: skip


def test_a_held_out_file_needs_no_answers_and_its_prompts_are_not_trained_on(tmp_path):
    held_out = write(
        tmp_path,
        *({"prompt": "가", "reference": "1"}, {"messages": [*EARLIER, ASKED]}, {"prompt": "나", "completion": "x"}),
        name="held.jsonl",
    )
    rows = [
        {"prompt": "가", "completion": "1"},
        {"prompt": "다", "completion": "2"},
        {"prompt": "나", "completion": "3"},
    ]
    found = read(write(tmp_path, *rows), held_out_path=str(held_out))
    assert [record.prompt[-1]["content"] for record in found.held_out] == ["가", USER, "나"]
    assert found.held_out[1].prompt == [*EARLIER, ASKED]
    assert found.held_out[0].reference == "1"
    assert [record.question for record in found.pool] == ["다"]
    assert [reject.reason for reject in found.rejects] == ["held_out_sample", "held_out_sample"]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "thinking", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
COLUMNS = ["prompt", "completion", "messages", "conversations", "instruction", "input", "output", "history"]
COLUMNS += ["model", "finish_reason", "system", "reference", "id", "licence"]


@given(rows=st.lists(st.dictionaries(st.sampled_from(COLUMNS), ANYTHING, max_size=6), max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_rows_hold_each_becomes_a_record_or_a_reject(tmp_path, rows):
    found = read(write(tmp_path, GOOD, *rows))
    assert found.num_rows == len(rows) + 1
    assert to_table(found.pool).num_rows + rejects_to_table(found.rejects).num_rows == found.num_rows


def test_generate_reads_rationale_and_answer_and_who_answered(tmp_path):
    thought = {"role": "assistant", "content": "A: 7", "reasoning_content": "생각"}
    rows: list[Row] = [
        {"prompt": "one", "completion": "Two and two.\nA: 4", "model": "big-1", "finish_reason": "stop"},
        {"messages": [{"role": "user", "content": "two"}, thought]},
        {"prompt": "three", "completion": "cut off", "finish_reason": "max_tokens"},
    ]
    kept, rejects = generated(importing(tmp_path, *rows, imported_from="big-2", unparsed="keep"))
    assert [(record.rationale, record.answer) for record in kept] == [
        ("Two and two.", "4"),
        ("생각", "7"),
        (None, "cut off"),
    ]
    teachers = [record.teacher for record in kept]
    assert [teacher.model for teacher in teachers if teacher] == ["big-1", "big-2", "big-2"]
    assert [teacher.finish_reason for teacher in teachers if teacher] == ["stop", "unknown", "length"]
    assert [record.reply for record in kept] == ["Two and two.\nA: 4", "A: 7", "cut off"]
    assert rejects == []


def test_generate_rejects_what_is_unparsed_cut_or_refused(tmp_path):
    rows = [
        {"prompt": "one", "completion": "no marker"},
        {"prompt": "two", "completion": "A: 4", "finish_reason": "length"},
        {"prompt": "three", "completion": "A: 5", "finish_reason": "content_filter"},
        {"prompt": "four", "completion": "A: 6"},
    ]
    kept, rejects = generated(importing(tmp_path, *rows, truncated="reject"))
    assert [record.answer for record in kept] == ["6"]
    assert [row["reject"]["reason"] for row in rejects] == ["unparsed", "truncated", "content_filter"]  # type: ignore[index]
    assert all(row["completion"] for row in rejects)


def test_importing_asks_nobody_and_another_template_needs_no_fresh(tmp_path):
    row = {"prompt": "one", "completion": "So:\nA: 4"}
    given = importing(tmp_path, row)
    assert [record.answer for record in generated(given)[0]] == ["4"]
    assert not (given.run_path / "generate" / "journal").exists()
    assert [record.answer for record in generated(importing(tmp_path, row, template="prompts/en/answer.yaml"))[0]] == [
        "So:\nA: 4"
    ]


def test_a_template_that_changed_in_place_is_read_again(tmp_path):
    template = tmp_path / "own.yaml"
    template.write_text("user: '{{ prompt }}'\nanswer_marker: 'A:'\n", "utf-8")
    given = importing(tmp_path, {"prompt": "one", "completion": "A: 4\nB: 5"}, template=str(template))
    assert generated(given)[0][0].answer == "4\nB: 5"
    template.write_text("user: '{{ prompt }}'\nanswer_marker: 'B:'\n", "utf-8")
    assert generated(given)[0][0].answer == "5"


def test_the_held_out_prompts_reach_evaluate(tmp_path):
    rows = [{"prompt": text, "completion": f"A: {n}"} for text in PROMPT_TEXTS for n in range(2)]
    given = importing(tmp_path, *rows, prompts={"held_out": 0.3})
    kept, _ = generated(given)
    held_out = read_records(given.run_path / "prompts" / "held_out.parquet")
    assert len(kept) + 2 * len(held_out) == 120
