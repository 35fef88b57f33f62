"""Masks: loss on the assistant's tokens, the end token among them, and on nothing else."""

from __future__ import annotations

import pytest

from llmdistill.engines.examples import Example, Unusable, encode
from llmdistill.engines.models import find_model, load_tokenizer
from llmdistill.record import Record, record_id
from llmdistill.templates import TeacherTemplate


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(find_model(str(tiny_model)))


def record(answer: str, prompt: str = "What is 2+2?") -> Record:
    messages = [{"role": "user", "content": prompt}]
    return Record(record_id(messages), messages, [{"role": "assistant", "content": answer}], answer=answer)


@pytest.mark.parametrize("answer", ["4", "답은 4입니다.", "It is:\n\n```\n4\n```", "a <|im_start|> b"])
def test_the_target_is_the_answer_and_one_end_token(tokenizer, answer):
    example = encode(record(answer), tokenizer, [2], 512)
    assert isinstance(example, Example)
    assert tokenizer.decode(example.target) == answer + "<|im_end|>"
    assert tokenizer.decode(example.prompt).endswith("<|im_start|>assistant\n")
    assert example.target.count(2) == 1


def test_an_end_token_is_added_when_the_template_writes_none(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    example = encode(record("four"), tokenizer, [2], 512)
    assert tokenizer.decode(example.target) == "four<|im_end|>"


def test_a_template_that_strips_thinking_is_found_out(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message['content'] }}", "{{ message['content'].split('</think>')[-1] }}"
    )
    found = encode(record("<think>2 and 2 is 4</think>4"), tokenizer, [2], 512)
    assert isinstance(found, Unusable)
    assert found.reason == "template_ate_text"


def test_a_template_that_renders_the_prompt_otherwise_is_found_out(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    found = encode(record("4"), tokenizer, [2], 512)
    assert isinstance(found, Unusable)
    assert found.reason == "template_mismatch"


def test_a_record_that_does_not_fit_is_dropped_whole_not_cut(tokenizer):
    found = encode(record("word " * 300), tokenizer, [2], 256)
    assert isinstance(found, Unusable)
    assert found.reason == "too_long_to_train"
    assert "256" in found.detail


def test_the_teacher_is_asked_through_its_template_and_the_student_is_not(tokenizer):
    template = TeacherTemplate(user="{{ prompt }}\n\nAnswer briefly.")
    example = encode(record("4"), tokenizer, [2], 512, template)
    assert "Answer briefly." in tokenizer.decode(example.teacher_prompt)
    assert "Answer briefly." not in tokenizer.decode(example.prompt)
    assert tokenizer.decode(example.target) == "4<|im_end|>"
