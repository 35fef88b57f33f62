"""The stages `prompts` and `generate`, and what `datasets` reads of them, with a small real model."""

from __future__ import annotations

import json

import pytest
from datasets import load_dataset

from llmdistill.config import Checks, Filter, Generate, Model, Prompts
from llmdistill.errors import ConfigError
from llmdistill.filter.stage import run as run_filter
from llmdistill.generate.stage import read, run
from llmdistill.run.files import read_table
from llmdistill.run.stage import read_records, read_shards
from tests.runs import pipeline
from tests.tiny import PROMPTS

TEXTS = [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").split("\n")[:60] if line]
SHORT = [text for text in TEXTS if len(text) < 150][:6]
TOO_LONG = "far too long " * 400
HANGUL = "서울의 날씨를 설명해 주세요."


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """A run whose prompts, generate and filter are done; prompts in a folder with a Hangul name."""
    folder = tmp_path_factory.mktemp("실행 폴더")
    rows = [{"prompt": text} for text in [*SHORT, TOO_LONG, HANGUL]] + [{"prompt": ""}, {"text": "no prompt"}]
    path = folder / "질문.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    settings = pipeline(
        folder / "run",
        prompts=Prompts(path=str(path), held_out=0.0, dataset="d", licence="CC0"),
        teacher=Model(model=str(tiny_model), device="cpu", dtype="float32"),
        generate=Generate(template="prompts/en/answer.yaml", max_new_tokens=12, temperature=0, shard_size=5),
        filter=Filter(checks=Checks(truncated=False, repetition=False, language=False), judge=None),
    )
    return settings, [read(settings), run(settings), run_filter(settings)]


def test_a_prompt_beyond_the_context_is_a_reject_and_the_rest_is_answered(made):
    settings, (_, generated, _) = made
    rejects = read_table(settings.run_path / "generate" / "rejects.parquet").to_pylist()
    long = [row for row in rejects if row["reject"]["reason"] == "prompt_too_long"]
    assert [row["prompt"][0]["content"] for row in long] == [TOO_LONG]
    assert "and 12 to come" in long[0]["reject"]["detail"]
    assert generated.counts.reasons["prompt_too_long"] == 1
    answered = {record.question for shard in read_shards(settings.run_path, "generate") for record in shard}
    assert HANGUL in answered or "empty_reply" in generated.counts.reasons


def test_every_stage_accounts_for_every_row(made):
    _, (prompts, generated, filtered) = made
    assert (prompts.counts.input, prompts.counts.reasons) == (10, {"empty_prompt": 1, "no_prompt": 1})
    assert generated.counts.input == prompts.counts.kept == 8
    assert filtered.counts.input == generated.counts.kept
    for manifest in made[1]:
        assert manifest.counts.input == manifest.counts.kept + manifest.counts.rejected


def test_records_carry_source_and_teacher(made, tiny_model):
    settings, _ = made
    for record in read_records(settings.run_path / "generate" / "part-00000.parquet"):
        assert (record.source.dataset, record.source.licence, record.source.split) == ("d", "CC0", "질문")
        assert record.teacher is not None and record.teacher.model == str(tiny_model)
        assert record.teacher.revision and record.teacher.completion_tokens <= 12
        assert record.completion[0]["role"] == "assistant" and record.answer == record.reply


def test_shards_and_rejects_of_every_stage_are_read_by_datasets(made, tmp_path):
    settings, manifests = made
    for manifest in manifests:
        files = [(name, read_table(settings.run_path / manifest.stage / name)) for name in manifest.outputs]
        for name, table in files:
            if table.num_rows:
                path = settings.run_path / manifest.stage / name
                found = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path))
                assert found.column_names == table.column_names
                assert found["id"][:] == table.column("id").to_pylist()


def test_the_same_command_again_gives_the_same_manifests(made):
    settings, manifests = made
    assert [read(settings), run(settings), run_filter(settings)] == manifests


def test_a_template_that_names_what_does_not_exist_stops_before_the_model_is_loaded(made, tmp_path):
    settings, _ = made
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("user: '{{ prompt }} {{ promt }}'\n")
    changed = settings.model_copy(update={"generate": Generate(template=str(wrong))})
    with pytest.raises(ConfigError, match=r"wrong.yaml: the template names \{\{ promt \}\}"):
        run(changed)
