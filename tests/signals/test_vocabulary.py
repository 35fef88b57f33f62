"""The vocabulary doctor on real tokenizers: what can be compared, what cannot, and in which words it says so."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmdistill.engines.batches import pad
from llmdistill.engines.examples import Example
from llmdistill.engines.models import find_model, load_tokenizer
from llmdistill.errors import ModelError
from llmdistill.signals.online import OnlineTeacher
from llmdistill.signals.vocabulary import compare, compare_models, output_rows, require_shared, unshared_id
from llmdistill.train.losses.dense import forward_kl
from tests.signals.tokenizers import byte_fallback, byte_level


@pytest.fixture(scope="module")
def original():
    return byte_level(500)


@pytest.fixture
def tokenizer(original):
    return copy.deepcopy(original)


def refusal(verdict) -> str:
    with pytest.raises(ModelError) as caught:
        require_shared(verdict, "teacher")
    return str(caught.value)


def test_equal_tokenizers_share_the_ids_of_the_smaller_layer(tokenizer, original):
    verdict = compare(original, tokenizer, 512, 640)
    assert (verdict.kind, verdict.shared_ids, verdict.common) == ("same", 512, 1.0)
    assert require_shared(verdict, "teacher") == 512
    assert verdict.words() == ["same tokens, 512 shared ids"]


@pytest.mark.parametrize(("rows", "who"), [((499, 640), "teacher"), ((640, 490), "student")])
def test_no_token_may_lie_in_the_part_that_is_cut_off(tokenizer, original, rows, who):
    verdict = compare(original, tokenizer, *rows)
    assert verdict.kind == "same" and not verdict.comparable
    assert f"the {who}'s output layer has {min(rows)} ids" in refusal(verdict)
    assert ("and 9 more" in refusal(verdict)) == (who == "student")


def test_permuted_ids_of_equal_size_are_refused_with_a_token_and_both_ids(original):
    vocabulary = original.get_vocab()
    one, other = "Ġthe", "Ġa"
    permuted = byte_level(500, {one: vocabulary[other], other: vocabulary[one]})
    assert len(permuted) == len(original)
    verdict = compare(original, permuted, 500, 500)
    assert (verdict.kind, verdict.shared_ids) == ("permuted", 0)
    token = min(one, other, key=vocabulary.__getitem__)
    said = f"{token!r} is id {vocabulary[token]} for the teacher and {permuted.get_vocab()[token]} for the student"
    assert said in refusal(verdict) and said in verdict.words()[0]


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_are_named_and_the_ids_before_them_shared(original, tokenizer, special):
    tokenizer.add_tokens(["<think>", "</think>", "<생각>"], special_tokens=special)
    for pair, rows, who in (
        ((original, tokenizer), (512, 640), "student"),
        ((tokenizer, original), (640, 512), "teacher"),
    ):
        verdict = compare(*pair, *rows)
        assert (verdict.kind, verdict.shared_ids) == ("extended", 500)
        added = verdict.student_only if who == "student" else verdict.teacher_only
        assert added == ("<think>", "</think>", "<생각>")
        assert "up to id 499" in verdict.words()[0] and "'<생각>'" in verdict.words()[0]
        assert require_shared(verdict, "teacher") == 500


def test_both_may_add_other_tokens_at_the_same_ids(original, tokenizer):
    other = copy.deepcopy(original)
    tokenizer.add_tokens(["<a>"])
    other.add_tokens(["<b>", "<c>"])
    verdict = compare(tokenizer, other)
    assert (verdict.kind, verdict.shared_ids) == ("extended", 500)
    assert (verdict.teacher_only, verdict.student_only) == (("<a>",), ("<b>", "<c>"))


def test_only_an_example_with_an_added_token_is_out_of_the_teachers_reach(tokenizer):
    assert unshared_id(Example("a", [1, 2], [499], [3]), 500) is None
    for example in (Example("a", [1, 501], [2]), Example("a", [1], [501, 2]), Example("a", [1], [2], [501])):
        assert unshared_id(example, 500) == 501


def test_a_longer_vocabulary_of_the_same_beginning_is_another_one(original):
    verdict = compare(byte_level(600), original)
    assert verdict.kind == "different" and verdict.common == pytest.approx(500 / 600)
    assert "(id 500)" in refusal(verdict)


def test_other_vocabularies_are_refused_with_what_can_be_done(original):
    verdict = compare(original, byte_fallback(700))
    assert verdict.kind == "different" and 0 < verdict.common < 0.5
    said = refusal(verdict)
    assert "train.cross_tokenizer: uld" in said and "train.method: sft" in said and f"{verdict.common:.1%}" in said


def test_templates_and_control_tokens_that_differ_are_told_and_refuse_nothing(original, tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "[")
    tokenizer.pad_token = "<|endoftext|>"
    verdict = compare(original, tokenizer)
    assert verdict.comparable and len(verdict.notes) == 2
    assert verdict.notes[0] == "pad_token: '<|im_end|>' for the teacher, '<|endoftext|>' for the student"
    assert "templates differ" in verdict.notes[1]


def test_a_template_that_refuses_the_conversation_is_a_difference_not_a_failure(original, tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    assert "templates differ" in compare(original, tokenizer).notes[0]


def test_models_are_compared_by_what_their_folders_say(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    size = model.get_output_embeddings().weight.shape[0]
    model.resize_token_embeddings(size + 40)
    model.save_pretrained(tmp_path)
    load_tokenizer(find_model(str(tiny_model))).save_pretrained(tmp_path)
    padded, plain = find_model(str(tmp_path)), find_model(str(tiny_model))
    assert (output_rows(padded), output_rows(plain)) == (size + 40, size)
    verdict = compare_models(padded, plain)
    assert (verdict.kind, verdict.shared_ids, verdict.notes) == ("same", size, ())
    (tmp_path / "config.json").write_text('{"model_type": "no such model"}')
    with pytest.raises(ModelError, match="config.json cannot be used"):
        output_rows(padded)


def test_a_padded_teacher_teaches_exactly_what_the_unpadded_one_does(tiny_model):
    plain, padded = (AutoModelForCausalLM.from_pretrained(tiny_model).double() for _ in range(2))
    size = plain.get_output_embeddings().weight.shape[0]
    padded.resize_token_embeddings(size + 40)
    torch.nn.init.normal_(padded.get_output_embeddings().weight[size:], std=9.0)
    tokens = load_tokenizer(find_model(str(tiny_model)))
    shared = require_shared(compare(tokens, tokens, size + 40, size), "teacher")
    batch = pad([Example("a", [5, 6, 7], [8, 9, 2]), Example("나", [11], [12, 2])], 2)
    logits = torch.randn(5, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = []
    for model in (plain, padded):
        teacher = OnlineTeacher(model, shared).distribution(batch, batch)
        losses.append(forward_kl(logits[:, : teacher.vocab_size], teacher.logits()))
    assert torch.equal(*losses)
    uncut = OnlineTeacher(padded, size + 40).distribution(batch, batch).logits()
    assert not torch.allclose(uncut.softmax(-1)[:, :size].sum(-1), torch.ones(5), atol=0.01)
