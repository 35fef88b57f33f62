"""The trainers on a real small model: equalities that must hold, and a peer to agree with."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmdistill.config import Train
from llmdistill.engines.examples import Example
from llmdistill.engines.models import find_model, load_model, load_tokenizer
from llmdistill.errors import ModelError, StageError
from llmdistill.signals.distributions import Full, Head
from llmdistill.signals.online import OnlineTeacher, check_same_tokens, shared_vocab_size
from llmdistill.train.losses.dense import cross_entropy, forward_kl
from llmdistill.train.trainers import kd_trainer, sft_trainer
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    draw = random.Random(0)
    tokens = lambda low, high: [draw.randrange(3, 500) for _ in range(draw.randint(low, high))]  # noqa: E731
    return [Example(f"record-{index}", tokens(2, 9), [*tokens(1, 12), 2]) for index in range(12)]


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("student"), num_layers=2, seed=1)


def settings(**changed: object) -> Train:
    usual = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "save_steps": 100}
    return Train(**{**usual, "device": "cpu", "dtype": "float32", **changed})


def losses_of(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train_kd(student_dir, teacher_dir, examples, tmp_path, **changed):
    source = find_model(str(student_dir))
    model, tokenizer = load_model(source, "float32", "cpu"), load_tokenizer(source)
    teacher = OnlineTeacher.open(find_model(str(teacher_dir)), model, tokenizer, "float32", "cpu")
    trainer = kd_trainer(model, tokenizer, examples, teacher, settings(**changed), tmp_path, seed=3)
    trainer.train()
    return trainer


def test_kd_with_hard_labels_only_is_trl_sft_step_by_step(student_dir, tiny_model, examples, tmp_path):
    source = find_model(str(student_dir))
    model, tokenizer = load_model(source, "float32", "cpu"), load_tokenizer(source)
    peer = sft_trainer(model, tokenizer, examples, settings(method="sft"), tmp_path / "sft", seed=3)
    peer.train()
    own = train_kd(student_dir, tiny_model, examples, tmp_path / "kd", soft_weight=0.0, hard_weight=1.0)
    assert losses_of(own) == pytest.approx(losses_of(peer), rel=1e-4)
    for name, tensor in own.model.state_dict().items():
        assert torch.allclose(tensor, peer.model.state_dict()[name], atol=2e-4), name


def test_gradient_accumulation_changes_nothing(student_dir, tiny_model, examples, tmp_path):
    whole = train_kd(student_dir, tiny_model, examples, tmp_path / "a", batch_size=4)
    parts = train_kd(student_dir, tiny_model, examples, tmp_path / "b", batch_size=1, gradient_accumulation=4)
    assert losses_of(whole) == pytest.approx(losses_of(parts), rel=1e-4)
    for name, tensor in whole.model.state_dict().items():
        assert torch.allclose(tensor, parts.model.state_dict()[name], atol=2e-4), name


def test_the_first_loss_is_the_mean_over_targets_computed_by_hand(student_dir, tiny_model, examples, tmp_path):
    mixture = {"soft_weight": 0.6, "hard_weight": 0.3, "temperature": 2.0}
    trainer = train_kd(student_dir, tiny_model, examples, tmp_path, batch_size=12, epochs=1, **mixture)
    student = AutoModelForCausalLM.from_pretrained(student_dir, dtype=torch.float64)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    total, count = 0.0, 0
    for example in examples:
        ids = torch.tensor([example.prompt + example.target])
        rows = slice(len(example.prompt) - 1, -1)
        with torch.no_grad():
            own, other = student(ids).logits[0, rows], teacher(ids).logits[0, rows]
        labels = torch.tensor(example.target)
        total += (0.6 * forward_kl(own, other, 2.0) + 0.3 * cross_entropy(own, labels)).sum().item()
        count += len(labels)
    assert losses_of(trainer)[0] == pytest.approx(total / count, rel=1e-5)


def test_kd_brings_the_student_nearer_to_its_teacher(student_dir, tiny_model, examples, tmp_path):
    trainer = train_kd(student_dir, tiny_model, examples, tmp_path, epochs=20, hard_weight=0.0)
    found = losses_of(trainer)
    assert found[-1] < 0.5 * found[0]


def test_resuming_gives_the_run_that_was_not_stopped(student_dir, tiny_model, examples, tmp_path):
    whole = train_kd(student_dir, tiny_model, examples, tmp_path / "whole", save_steps=2)
    source = find_model(str(student_dir))
    model, tokenizer = load_model(source, "float32", "cpu"), load_tokenizer(source)
    teacher = OnlineTeacher.open(find_model(str(tiny_model)), model, tokenizer, "float32", "cpu")
    again = kd_trainer(model, tokenizer, examples, teacher, settings(save_steps=2), tmp_path / "whole", seed=3)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert losses_of(again) == pytest.approx(losses_of(whole), rel=1e-6)
    for name, tensor in whole.model.state_dict().items():
        assert torch.allclose(tensor, again.model.state_dict()[name], atol=1e-6), name


def test_a_loss_that_is_not_finite_stops_and_names_the_records(student_dir, tiny_model, examples, tmp_path):
    class BrokenTeacher:
        needs_batch = False

        def distribution(self, record_ids, asked):
            head = Head(torch.zeros(600, 1))
            return Full(torch.full((1000, 1), float("nan")), head, 600)

    source = find_model(str(student_dir))
    model, tokenizer = load_model(source, "float32", "cpu"), load_tokenizer(source)
    trainer = kd_trainer(model, tokenizer, examples, BrokenTeacher(), settings(), tmp_path, seed=3)
    with pytest.raises(StageError, match="record-"):
        trainer.train()


def test_tokenizers_of_equal_size_that_differ_are_refused(tiny_model):
    one, other = load_tokenizer(find_model(str(tiny_model))), load_tokenizer(find_model(str(tiny_model)))
    check_same_tokens(one, other, "teacher")
    vocabulary = other.get_vocab()
    first, second = sorted(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    other.get_vocab = lambda: vocabulary
    with pytest.raises(ModelError, match="tokenizers differ"):
        check_same_tokens(one, other, "teacher")


def test_a_teacher_with_a_padded_vocabulary_gives_the_shared_ids(student_dir, tiny_model, examples, tmp_path):
    teacher = AutoModelForCausalLM.from_pretrained(tiny_model)
    size = teacher.get_output_embeddings().weight.shape[0]
    teacher.resize_token_embeddings(size + 40)
    student = AutoModelForCausalLM.from_pretrained(student_dir)
    assert shared_vocab_size(teacher, student) == size


def test_the_teacher_reads_its_own_prompt_and_the_student_the_bare_one(student_dir, tiny_model, examples, tmp_path):
    asked = [Example(e.record_id, e.prompt, e.target, [9, 9, *e.prompt, 7]) for e in examples]
    trainer = train_kd(student_dir, tiny_model, asked, tmp_path, batch_size=12, epochs=1, hard_weight=0.0)
    student = AutoModelForCausalLM.from_pretrained(student_dir, dtype=torch.float64)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    total, count = 0.0, 0
    for example in asked:
        with torch.no_grad():
            own = student(torch.tensor([example.prompt + example.target])).logits[0, len(example.prompt) - 1 : -1]
            ids = torch.tensor([example.teacher_prompt + example.target])
            other = teacher(ids).logits[0, len(example.teacher_prompt) - 1 : -1]
        total += forward_kl(own, other).sum().item()
        count += len(example.target)
    assert losses_of(trainer)[0] == pytest.approx(total / count, rel=1e-5)
