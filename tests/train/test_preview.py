"""What is trained, shown token by token, with chat templates that do what they should not."""

from __future__ import annotations

import dataclasses
import json

import pytest

import llmdistill.cli as cli_module
from llmdistill.config import Model, Student, Train
from llmdistill.doctor import examine
from llmdistill.engines.models import find_model, load_tokenizer
from llmdistill.errors import ModelError
from llmdistill.record import to_row
from llmdistill.signals.cross import Pairer
from llmdistill.templates import TeacherTemplate
from llmdistill.train.preview import Reader, preview, previews, texts_of
from tests.runs import answered, finish_stage, pipeline
from tests.signals.tokenizers import byte_fallback
from tests.tiny import save_tiny_model

KOREAN = answered("수도는 어디인가요?", "답은 서울입니다. 🍎")
THINKING = dataclasses.replace(answered("2+2?", "<think>둘에 둘을 더하면 넷</think>4"), rationale="둘에 둘을 더하면 넷")


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(find_model(str(tiny_model)))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("other"), num_layers=1, vocab_size=400)


def shown(record, tokenizer, **changed):
    return preview(record, Reader(**{"tokenizer": tokenizer, "ends": [2], "max_length": 512, **changed}))


def text_of(item, trained):
    return "".join(token["text"] for token in item["tokens"] if token["trained"] == trained)


def notes_of(item):
    return {note["code"]: note["text"] for note in item["notes"]}


def test_the_answer_and_the_end_token_are_trained_and_nothing_else(tokenizer):
    found = shown(KOREAN, tokenizer)
    assert text_of(found, True) == "답은 서울입니다. 🍎<|im_end|>"
    assert text_of(found, False) == "<|im_start|>user\n수도는 어디인가요?<|im_end|>\n<|im_start|>assistant\n"
    assert found["end"] == "trained" and found["num_trained"] == sum(token["trained"] for token in found["tokens"])
    assert "problem" not in found and "asked" not in found


def test_a_letter_of_several_tokens_stands_whole_at_its_last_one(tokenizer):
    for text in ("뷁🍎", "a \ufffd뷁 b"):
        ids = tokenizer.encode(text)
        texts = texts_of(tokenizer, ids)
        assert "".join(texts) == text and len(texts) == len(ids) and "" in texts
    fallback = byte_fallback(700)
    assert "".join(texts_of(fallback, fallback.encode("the cat 뷁"))) == " the cat 뷁"


def test_half_a_letter_at_the_end_is_shown_as_such(tokenizer):
    assert texts_of(tokenizer, tokenizer.encode("뷁")[:-1])[-1] == "\ufffd"


def test_a_template_that_strips_thinking_is_shown_with_what_it_ate(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message['content'] }}", "{{ message['content'].split('</think>')[-1] }}"
    )
    found = shown(THINKING, tokenizer)
    assert found["problem"].startswith("template_ate_text") and found["num_trained"] == 0
    assert not any(token["trained"] for token in found["tokens"]) and text_of(found, False).endswith("4<|im_end|>\n")
    gone = THINKING.reply[:-1]
    assert notes_of(found)["eaten"] == f"the template leaves out {len(gone)} of {len(gone) + 1} letters: {gone!r}"
    assert notes_of(found)["rationale_eaten"] == "the rationale is among them"


def test_a_rationale_that_was_never_in_the_answer_is_told(tokenizer):
    apart = dataclasses.replace(KOREAN, rationale="한국의 수도를 묻는 질문이다.")
    assert "rationale_apart" in notes_of(shown(apart, tokenizer))
    assert "rationale_apart" not in notes_of(shown(THINKING, tokenizer))


def test_the_mask_needs_no_generation_marks(tokenizer):
    plain = shown(KOREAN, tokenizer)
    assert "no_generation_marks" in notes_of(plain) and plain["num_trained"] > 1
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message['content'] }}<|im_end|>\n",
        "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{{ '\\n' }}",
    )
    marked = shown(KOREAN, tokenizer)
    assert "no_generation_marks" not in notes_of(marked) and marked["tokens"] == plain["tokens"]


def test_a_template_without_an_end_token_has_one_added_and_trained(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    found = shown(KOREAN, tokenizer)
    assert found["end"] == "added" and found["tokens"][-1] == {"id": 2, "text": "<|im_end|>", "trained": True}
    assert "'<|im_end|>' is added, and trained" in notes_of(found)["end_added"]
    assert "left_after_end" not in notes_of(found)


def test_what_stands_after_the_end_token_is_left_out_and_told(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>\n\n끝")
    found = shown(KOREAN, tokenizer)
    assert text_of(found, True).endswith("🍎<|im_end|>") and found["end"] == "trained"
    assert repr("\n\n끝") in notes_of(found)["left_after_end"]


def test_padding_with_the_end_token_does_not_unmask_it(tokenizer):
    assert tokenizer.pad_token == tokenizer.eos_token
    found = shown(KOREAN, tokenizer)
    assert "pad_is_end" in notes_of(found) and found["tokens"][-1]["trained"]
    tokenizer.pad_token = "<|endoftext|>"
    assert "pad_is_end" not in notes_of(shown(KOREAN, tokenizer))


def test_an_empty_answer_trains_the_end_token_alone(tokenizer):
    found = shown(answered("질문", ""), tokenizer)
    assert found["num_trained"] == 1 and "only_end_trained" in notes_of(found)
    assert "only_end_trained" not in notes_of(shown(KOREAN, tokenizer))


def test_a_record_beyond_max_length_shows_where_it_would_have_been_cut(tokenizer):
    found = shown(KOREAN, tokenizer, max_length=len(shown(KOREAN, tokenizer)["tokens"]) - 1)
    assert found["problem"].startswith("too_long_to_train") and found["num_trained"] == 0
    assert "'<|im_end|>" in notes_of(found)["beyond_max_length"]


def test_a_prompt_that_is_rendered_otherwise_before_an_answer_shows_where(tokenizer):
    tokenizer.chat_template = "{{ messages | length }} messages:" + tokenizer.chat_template
    found = shown(KOREAN, tokenizer)
    assert found["problem"].startswith("template_mismatch")
    assert "goes on with '1 messages:" in notes_of(found)["parted"]
    assert "answer with '2 messages:" in notes_of(found)["parted"]


def test_for_distillation_the_teachers_prompt_is_shown(tokenizer):
    template = TeacherTemplate(user="{{ prompt }}\n\n짧게 답하세요.")
    found = shown(KOREAN, tokenizer, template=template)
    assert "짧게 답하세요." in "".join(token["text"] for token in found["asked"])
    assert "짧게 답하세요." not in text_of(found, False)


def test_a_teacher_of_another_vocabulary_shows_its_own_prompt_and_where_its_tokens_meet(tokenizer):
    teacher = byte_fallback(700)
    template = TeacherTemplate(user="{{ prompt }}\n\n짧게 답하세요.")
    found = shown(KOREAN, tokenizer, template=template, pairer=Pairer(tokenizer, teacher, [2], 512))
    assert found["asked"][0]["id"] == teacher.convert_tokens_to_ids("<|im_start|>")
    matched = [token for token in found["tokens"] if token["matched"]]
    assert matched[-1]["text"] == "<|im_end|>" and all(token["trained"] for token in matched)
    assert f"{len(matched)} of {found['num_trained']} trained tokens" in notes_of(found)["matched"]


def test_a_token_that_the_teacher_does_not_know_keeps_a_record_out(tokenizer):
    tokenizer.add_tokens(["<생각>"])
    new = tokenizer.convert_tokens_to_ids("<생각>")
    found = shown(
        answered("질문", "<생각> 네"), tokenizer, template=TeacherTemplate(user="{{ prompt }}"), shared_ids=new
    )
    assert found["problem"].startswith("unshared_token: '<생각>'")
    assert "problem" not in shown(KOREAN, tokenizer, shared_ids=new)


def kd(run_dir, teacher, student, **train):
    chosen = Student(model=str(student)) if student else Student(keep_layers=2)
    return pipeline(run_dir, teacher=Model(model=str(teacher)), student=chosen, train=Train(**train))


def test_previews_follow_the_pipeline(tiny_model, other_model, tmp_path):
    rows = [to_row(KOREAN)]
    (plain,) = previews(rows, kd(tmp_path, tiny_model, None, method="sft"))
    assert "asked" not in plain
    (same,) = previews(rows, kd(tmp_path, tiny_model, None))
    assert same["asked"] and "matched" not in same["tokens"][0]
    with pytest.raises(ModelError, match="train.cross_tokenizer: uld"):
        previews(rows, kd(tmp_path, tiny_model, other_model))
    (crossed,) = previews(rows, kd(tmp_path, tiny_model, other_model, cross_tokenizer="uld"))
    assert any(token["matched"] for token in crossed["tokens"])
    (absent,) = previews(rows, kd(tmp_path, "no/such-teacher", other_model))
    assert absent["asked"] and not absent.get("problem")


def test_masks_are_told_in_words_and_as_json(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "x.yaml").write_text(
        f"name: x\nrun_dir: run\nprompts: {{path: p.jsonl, held_out: 0}}\nteacher: {{model: {tiny_model}}}\n"
        "student: {keep_layers: 2}\ngenerate: {template: prompts/en/answer.yaml}\nfilter: {judge: null}\n"
    )
    long = answered("long \x1b[31m", "낱말 " * 300)
    finish_stage(tmp_path / "run", "curate", [[KOREAN, long]])

    def inspect(*arguments):
        monkeypatch.setattr("sys.argv", ["llmdistill", "inspect", "x.yaml", "--masks", *arguments])
        return cli_module._exit_code(), capsys.readouterr().out

    code, out = inspect()
    assert code == 0 and "trained: 답은 서울입니다. 🍎<|im_end|>" in out and "end token trained" in out
    assert "not trained: too_long_to_train" in out and "teacher reads: <|im_start|>user" in out and "\x1b" not in out
    code, out = inspect("--json", "--where", "answer~서울")
    (item,) = json.loads(out)
    assert code == 0 and item["end"] == "trained" and {"code", "text"} == set(item["notes"][0])


def test_doctor_compares_the_vocabularies_of_a_pipeline(tiny_model, other_model, tmp_path):
    def found(teacher, student, **train):
        findings = examine(kd(tmp_path, teacher, student, **train))
        return [(finding.ok, finding.found) for finding in findings if finding.what == "vocabulary"]

    assert found(tiny_model, None) == [] == found(tiny_model, other_model, method="sft")
    assert found(tiny_model, tiny_model) == [(True, "same tokens, 600 shared ids")]
    ((ok, text),) = found(tiny_model, other_model)
    assert not ok and "train.cross_tokenizer: uld" in text
    ((ok, text),) = found(tiny_model, other_model, cross_tokenizer="uld")
    assert ok and "sorted probabilities" in text
    assert "not both on this machine" in found("no/such-teacher", other_model)[0][1]
