"""What is exported is what was kept: every form comes back the same, `datasets` and TRL read it, no file is half."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdistill.config import Generate, Prompts
from llmdistill.errors import StageError, UsageError
from llmdistill.export.data import FORMS, check_target, records_of, write_file
from llmdistill.generate.imports import Imported, read_imports
from llmdistill.record import Message, Record, Source, TeacherInfo, record_id
from tests.runs import answered, finish_stage, pipeline

HOSTILE = [
    "{{ prompt }}",
    "</s><|im_end|>",
    "a\u2028b\u2029c\u0085d",
    "NUL \x00 in it",
    '"\\',
    "[INST] \r\n\t",
    "서울의 날씨",
    "🍎\u200b",
]
TEXT = (st.sampled_from(HOSTILE) | st.text(max_size=20)).filter(str.strip)
MODEL = TEXT.map(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """A prompt: perhaps a system message, earlier turns, the question."""
    system = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    turns = draw(st.lists(st.tuples(TEXT, TEXT), max_size=2))
    earlier = [
        message
        for question, answer in turns
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    ]
    return [*system, *earlier, {"role": "user", "content": draw(TEXT)}]


def record(prompt: list[Message], text: str, reference: str | None, model: str, licence: str | None) -> Record:
    """A record as `generate` leaves it."""
    return Record(
        record_id(prompt),
        prompt,
        [{"role": "assistant", "content": text.strip()}],
        answer=text.strip(),
        reference=reference,
        source=Source("d", "s", "k", licence),
        teacher=TeacherInfo(model, None, "", "stop", 1, 1),
    )


def records(prompts: st.SearchStrategy[list[Message]]) -> st.SearchStrategy[list[Record]]:
    made = st.builds(record, prompts, TEXT, st.none() | st.text(max_size=9), MODEL, st.none() | MODEL)
    return st.lists(made, min_size=1, max_size=5, unique_by=lambda item: (item.id, item.reply))


def imported(path: Path) -> list[Record]:
    generate = Generate(mode="import", template="prompts/en/answer.yaml")
    given = pipeline(path.parent / "run", prompts=Prompts(path=str(path), held_out=0.0), generate=generate)
    found = read_imports(given.prompts)
    assert found.rejects == []
    outcome = Imported(given).read(found.pool)
    assert outcome.rejected == []
    return outcome.kept


def essence(item: Record) -> tuple[object, ...]:
    return (
        item.prompt,
        item.completion,
        item.answer,
        item.reference,
        item.teacher and item.teacher.model,
        item.source.licence,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_is_exported_and_imported_again_is_the_same(tmp_path, form, suffix):
    prompts = conversations() if form != "alpaca" else TEXT.map(lambda text: [{"role": "user", "content": text}])

    @given(made=records(prompts))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def same(made: list[Record]) -> None:
        path = tmp_path / f"train.{suffix}"
        assert write_file(made, form, path) == len(made)
        assert list(map(essence, imported(path))) == list(map(essence, made))

    same()


@pytest.mark.parametrize("form", FORMS)
def test_every_hostile_text_stays_one_line_and_comes_back(tmp_path, form):
    made = [record([{"role": "user", "content": text}], text, text, "m", None) for text in HOSTILE]
    path = tmp_path / "train.jsonl"
    write_file(made, form, path)
    assert len(path.read_text("utf-8").splitlines()) == len(HOSTILE)
    assert list(map(essence, imported(path))) == list(map(essence, made))


PLAIN = [replace(answered(f"질문 {number}?", f"답 {number}"), reference=str(number)) for number in range(20)]


def loaded(path: Path) -> Dataset:
    kind = "json" if path.suffix == ".jsonl" else "parquet"
    return load_dataset(kind, data_files=str(path), split="train", cache_dir=str(path.parent / "cache"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_datasets_reads_every_form(tmp_path, form, suffix):
    path = tmp_path / f"train.{suffix}"
    write_file(PLAIN, form, path)
    read = loaded(path)
    assert read.num_rows == 20
    assert set(read.column_names) >= {"reference", "model", "licence"}
    assert (read[3]["reference"], read[3]["model"], read[3]["licence"]) == ("3", "m", None)


@pytest.mark.parametrize("form", ["messages", "prompt-completion"])
def test_trl_trains_on_the_file_as_it_is(tmp_path, tiny_model, form):
    from trl import SFTConfig, SFTTrainer

    path = tmp_path / "train.jsonl"
    write_file(PLAIN[:4], form, path)
    config = SFTConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, bf16=False,
    )  # fmt: skip
    trainer = SFTTrainer(str(tiny_model), args=config, train_dataset=loaded(path))
    text = trainer.processing_class.decode(trainer.train_dataset[0]["input_ids"])
    assert "질문 0?" in text and "답 0" in text
    assert trainer.train().global_step == 1


def test_alpaca_refuses_what_it_cannot_hold_and_counts_it(tmp_path):
    system = [{"role": "system", "content": "Be brief."}]
    fitting, with_system = PLAIN[0], replace(PLAIN[1], prompt=[*system, *PLAIN[1].prompt])
    turns = replace(PLAIN[2], prompt=[*PLAIN[3].prompt, *PLAIN[3].completion, *PLAIN[2].prompt])
    finish_stage(tmp_path, "curate", [[fitting, with_system], [turns]])
    with pytest.raises(UsageError, match="2 of the records do not fit Alpaca's form.*--format messages"):
        records_of(tmp_path, "curate", "alpaca")
    assert len(list(records_of(tmp_path, "curate", "sharegpt"))) == 3


def test_a_stage_that_is_not_finished_is_not_exported(tmp_path):
    with pytest.raises(StageError, match="curate is not finished yet -> run llmdistill curate first"):
        records_of(tmp_path, "curate", "messages")


@pytest.mark.parametrize(
    ("stage", "form", "message"),
    [("prompts", "messages", "there are generate, filter, curate"), ("curate", "csv", "there are messages, prompt-c")],
)
def test_an_unknown_stage_or_form_names_those_there_are(tmp_path, stage, form, message):
    with pytest.raises(UsageError, match=message):
        records_of(tmp_path, stage, form)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_export_that_fails_leaves_the_old_file(tmp_path, suffix):
    def failing() -> Callable[..., object]:
        yield from PLAIN
        raise StageError("the shard is torn")

    path = tmp_path / f"train.{suffix}"
    path.write_text("old", "utf-8")
    with pytest.raises(StageError):
        write_file(failing(), "messages", path)
    assert path.read_text("utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_file_that_is_there_is_written_over_only_when_told(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("old", "utf-8")
    with pytest.raises(UsageError, match="this file exists already.*--force"):
        check_target(path, overwrite=False)
    check_target(path, overwrite=True)
    with pytest.raises(UsageError, match="unknown kind of file"):
        check_target(tmp_path / "train.csv", overwrite=True)


def test_the_number_of_lines_is_the_number_of_records_of_all_shards(tmp_path):
    finish_stage(tmp_path, "filter", [PLAIN[:7], [], PLAIN[7:]])
    path = tmp_path / "out.jsonl"
    assert write_file(records_of(tmp_path, "filter", "messages"), "messages", path) == 20
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["messages"][0]["content"] for line in lines] == [item.question for item in PLAIN]
