"""A teacher of another vocabulary: where its tokens meet the student's, and what it says there."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmdistill.config import Train
from llmdistill.engines.batches import pack, pad
from llmdistill.engines.examples import Unusable, encode
from llmdistill.engines.models import find_model, load_model, load_tokenizer
from llmdistill.errors import ModelError
from llmdistill.signals.cross import CrossTeacher, Pairer, Pairing, bytes_of_tokens, offsets, pairs, teachable
from llmdistill.templates import TeacherTemplate
from llmdistill.train.losses.uld import uld
from llmdistill.train.trainers import kd_trainer
from tests.runs import answered
from tests.signals.tokenizers import byte_fallback, byte_level
from tests.tiny import save_tiny_model

ANSWERS = ["The cats sat.", "답은 뷁, 네 가지입니다.", "🍎🍏 é ñ ＡＢ", "a\n\n  b\t<|im_start|>c", "</think> im_end x"]
RECORDS = [answered(f"question {number} 질문", answer) for number, answer in enumerate(ANSWERS)]


@pytest.fixture(scope="module", params=["byte level", "byte fallback"])
def teacher(request):
    return byte_level(900) if request.param == "byte level" else byte_fallback(900)


@pytest.fixture(scope="module")
def student():
    return byte_level(400)


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("teacher"), num_layers=2, vocab_size=600)


def texts_before(target, tokenizer):
    """What stands before each token, the slow way: the bytes of all tokens before it."""
    spell = bytes_of_tokens(tokenizer)
    return [b"".join(map(spell, target[:place])) for place in range(len(target))]


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
def test_tokens_meet_where_the_same_bytes_stand_before_them_and_nowhere_else(record, student, teacher):
    example = encode(record, student, [2], 512)
    found = Pairer(student, teacher, [2], 512).pair(example, record, None)
    assert isinstance(found, Pairing), found
    own, other = (texts_before(ids, who) for ids, who in ((example.target, student), (found.asked.target, teacher)))
    lead = len(b"".join(map(bytes_of_tokens(teacher), found.asked.target[:-1]))) - len(record.reply.encode())
    expected = [
        (place, partner)
        for place, before in enumerate(own)
        for partner, text in enumerate(other)
        if text[lead:] == before and len(text) >= lead
    ]
    assert list(zip(found.student_places, found.teacher_places, strict=True)) == expected
    assert found.student_places[-1] == len(example.target) - 1, "both are about to end"
    assert found.teacher_places[-1] == len(found.asked.target) - 1
    assert len(expected) >= 3


def test_the_shared_ends_of_words_are_found_by_hand():
    assert pairs([0, 3, 7, 8, 12], [0, 3, 5, 9, 12]) == [(0, 0), (1, 1), (4, 4)]
    assert pairs([None, 0, 2, None], [0, 1, 2, 3]) == [(1, 0), (2, 2)]
    assert pairs([None, None], [0, 1]) == []


def test_offsets_count_from_the_answer_and_leave_out_what_the_template_adds():
    spell = dict(enumerate([b"<think>", b"\n", b"an", b"swer", b"\n", b"<end>"])).__getitem__
    assert offsets([2, 3, 5], b"answer", spell) == [0, 2, 6]
    assert offsets([0, 1, 2, 3, 5], b"answer", spell) == [None, None, 0, 2, 6]
    assert offsets([2, 3, 4, 5], b"answer", spell) == [0, 2, None, None]
    assert offsets([2, 3, 5], b"Answer", spell) == [None] * 3
    assert offsets([0, 2, 5], b"an", spell) == offsets([2, 2, 5], b"an", spell) == [None, 0, 2]


def test_half_a_letter_is_told_apart(student, teacher):
    for tokenizer in (student, teacher):
        spell = bytes_of_tokens(tokenizer)
        pieces = [spell(token) for token in tokenizer.encode("뷁🍎")]
        assert b"".join(pieces).strip() == "뷁🍎".encode()
        assert len(pieces) > 2 and b"\xb7" in b"".join(pieces)


def test_a_tokenizer_that_rewrites_text_is_refused():
    from tokenizers import normalizers

    student = byte_level(400)
    student.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match="cannot be told"):
        bytes_of_tokens(student)


def test_the_teacher_is_asked_in_its_own_words(student):
    teacher = byte_fallback(900)
    teacher.chat_template = teacher.chat_template.replace("<|im_start|>", "<|endoftext|>")
    record, template = RECORDS[0], TeacherTemplate(user="{{ prompt }}\n\n천천히 생각하세요.")
    found = Pairer(student, teacher, [2], 512).pair(encode(record, student, [2], 512), record, template)
    prompt = teacher.decode(found.asked.prompt)
    assert "천천히 생각하세요." in prompt and "<|endoftext|>" in prompt and "<|im_start|>" not in prompt


def test_records_that_the_teacher_cannot_read_are_set_aside_with_the_reason(student):
    teacher = byte_level(900)
    examples = [encode(record, student, [2], 512) for record in RECORDS]
    whole, _ = Pairer(student, teacher, [2], 512).pair_all(examples, RECORDS, None)
    lengths = {id_: len(pairing.asked.prompt + pairing.asked.target) for id_, pairing in whole.items()}
    longest = max(RECORDS, key=lambda record: lengths[record.id])
    teacher.chat_template = student.chat_template.replace(
        "{{ message['content'] }}", "{{ message['content'].split('</think>')[-1] }}"
    )
    pairings, rejects = Pairer(student, teacher, [2], lengths[longest.id] - 1).pair_all(examples, RECORDS, None)
    reasons = {reject.record.id: reject.reason for reject in rejects}
    assert reasons == {longest.id: "teacher_too_long_to_train", RECORDS[4].id: "teacher_template_ate_text"}
    assert set(pairings) == {record.id for record in RECORDS} - set(reasons)


def test_a_text_that_one_of_them_does_not_give_back_has_no_pairs(student):
    record = RECORDS[0]
    pairer = Pairer(student, byte_level(900), [2], 512)
    example = encode(record, student, [2], 512)
    found = pairer.pair(example, answered("q", "Another answer"), None)
    assert isinstance(found, Unusable) and found.reason == "not_aligned"


@pytest.mark.parametrize("lay", [lambda examples: pad(examples, 2), pack], ids=["padded", "packed"])
def test_a_batch_gives_what_each_record_alone_gives(student, teacher_dir, lay):
    examples = [encode(record, student, [2], 512) for record in RECORDS]
    source = find_model(str(teacher_dir))
    teacher = CrossTeacher.open(source, student, examples, RECORDS, None, "float32", "cpu")
    assert not teacher.needs_batch
    order = [3, 0, 4]
    together = teacher.distribution(lay([examples[index] for index in order]), None)
    tokenizer, model = load_tokenizer(source), AutoModelForCausalLM.from_pretrained(teacher_dir)
    hidden, targets, start = [], [], 0
    for index in order:
        paired = Pairer(student, tokenizer, [2], 512).pair(examples[index], RECORDS[index], None)
        ids = torch.tensor([paired.asked.prompt + paired.asked.target])
        first = len(paired.asked.prompt) - 1
        with torch.no_grad():
            hidden.append(model(ids).logits[0, [first + place for place in paired.teacher_places]])
        targets += [start + place for place in paired.student_places]
        start += len(examples[index].target)
    assert together.targets.tolist() == targets
    assert torch.allclose(together.logits(), torch.cat(hidden), atol=1e-4)


def test_examples_with_a_token_that_the_teacher_lacks_are_set_aside(teacher_dir, tmp_path):
    source = find_model(str(teacher_dir))
    tokenizer = load_tokenizer(source)
    tokenizer.add_tokens(["<생각>"])
    model = AutoModelForCausalLM.from_pretrained(teacher_dir)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    records = [*RECORDS, answered("질문", "<생각> 네")]
    examples = [encode(record, tokenizer, [2], 512) for record in records]
    kept, rejects = teachable(source, find_model(str(tmp_path)), Train(), examples, records, TeacherTemplate(user="x"))
    assert [example.record_id for example in kept] == [record.id for record in RECORDS]
    assert [(reject.record.id, reject.reason) for reject in rejects] == [(records[-1].id, "unshared_token")]
    assert "'<생각>'" in rejects[0].detail


def test_other_vocabularies_are_refused_unless_they_may_be_crossed(teacher_dir, tmp_path):
    source = find_model(str(teacher_dir))
    small = find_model(str(save_tiny_model(tmp_path, num_layers=1, vocab_size=400)))
    examples = [encode(record, load_tokenizer(small), [2], 512) for record in RECORDS]
    template = TeacherTemplate(user="{{ prompt }}")
    with pytest.raises(ModelError, match="train.cross_tokenizer: uld"):
        teachable(source, small, Train(), examples, RECORDS, template)
    kept, rejects = teachable(source, small, Train(cross_tokenizer="uld"), examples, RECORDS, template)
    assert kept == examples and not rejects
    crossed_same, _ = teachable(source, source, Train(cross_tokenizer="uld"), examples, RECORDS, template)
    assert crossed_same == examples, "the same tokens need no crossing"


def test_training_brings_the_student_nearer_to_a_teacher_of_another_vocabulary(teacher_dir, tmp_path):
    small = find_model(str(save_tiny_model(tmp_path / "student", num_layers=1, seed=3, vocab_size=400)))
    model, tokenizer = load_model(small, "float32", "cpu"), load_tokenizer(small)
    examples = [encode(record, tokenizer, [2], 512) for record in RECORDS]
    teacher = CrossTeacher.open(find_model(str(teacher_dir)), tokenizer, examples, RECORDS, None, "float32", "cpu")
    with torch.no_grad():
        teacher.model.get_output_embeddings().weight.mul_(20)  # an untrained model's distribution is nearly flat
    settings = Train(
        cross_tokenizer="uld", epochs=15, batch_size=5, learning_rate=2e-2, save_steps=1000, device="cpu",
        dtype="float32", hard_weight=0.0, packing=True,
    )  # fmt: skip
    trainer = kd_trainer(model, tokenizer, examples, teacher, settings, tmp_path / "out", seed=3)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


def test_the_first_loss_is_the_mean_over_targets_computed_by_hand(teacher_dir, tmp_path):
    small = find_model(str(save_tiny_model(tmp_path / "student", num_layers=1, seed=3, vocab_size=400)))
    source = find_model(str(teacher_dir))
    model, tokenizer, own = load_model(small, "float32", "cpu"), load_tokenizer(small), load_tokenizer(source)
    examples = [encode(record, tokenizer, [2], 512) for record in RECORDS]
    student, other = (AutoModelForCausalLM.from_pretrained(path.path, dtype=torch.float64) for path in (small, source))
    total, count = 0.0, 0
    for example, record in zip(examples, RECORDS, strict=True):
        paired = Pairer(tokenizer, own, [2], 512).pair(example, record, None)
        with torch.no_grad():
            logits = student(torch.tensor([example.prompt + example.target])).logits[0, len(example.prompt) - 1 : -1]
            asked = torch.tensor([paired.asked.prompt + paired.asked.target])
            theirs = other(asked).logits[0, len(paired.asked.prompt) - 1 : -1]
        apart = uld(logits[paired.student_places], theirs[paired.teacher_places], 2.0)
        hard = torch.nn.functional.cross_entropy(logits, torch.tensor(example.target), reduction="sum")
        total += 0.6 * apart.sum().item() + 0.3 * hard.item()
        count += len(example.target)
    teacher = CrossTeacher.open(source, tokenizer, examples, RECORDS, None, "float32", "cpu")
    settings = Train(
        cross_tokenizer="uld", epochs=1, batch_size=len(examples), device="cpu", dtype="float32", soft_weight=0.6,
        hard_weight=0.3, temperature=2.0, save_steps=1000,
    )  # fmt: skip
    trainer = kd_trainer(model, tokenizer, examples, teacher, settings, tmp_path / "out", seed=3)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total / count, rel=1e-5)
