"""The trainers on a real small model: equalities that must hold, and a peer to agree with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments

from llmdistill.engines.examples import Example
from llmdistill.engines.models import find_model, load_model, load_tokenizer
from llmdistill.errors import ModelError, StageError
from llmdistill.signals.distributions import Full
from llmdistill.signals.online import OnlineTeacher
from llmdistill.train.arguments import common_arguments, one_device
from llmdistill.train.forward import add_distillation
from llmdistill.train.losses.dense import cross_entropy, forward_kl
from llmdistill.train.trainers import kd_trainer, sft_trainer
from tests.tiny import save_tiny_model
from tests.train.following import losses_of, online, settings, some_examples, student_of


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return some_examples(12)


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("student"), num_layers=2, seed=1)


def train_kd(student_dir, teacher_dir, examples, tmp_path, **changed):
    source = find_model(str(student_dir))
    model, tokenizer = load_model(source, "float32", "cpu"), load_tokenizer(source)
    teacher = online(teacher_dir)
    trainer = kd_trainer(model, tokenizer, examples, teacher, settings(**changed), tmp_path, seed=3)
    trainer.train()
    return trainer


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


def test_resuming_restores_the_optimizer_too(student_dir, tiny_model, examples, tmp_path):
    whole = train_kd(student_dir, tiny_model, examples, tmp_path / "whole", save_steps=2)
    source = find_model(str(student_dir))
    model, tokenizer = load_model(source, "float32", "cpu"), load_tokenizer(source)
    teacher = online(tiny_model)
    again = kd_trainer(model, tokenizer, examples, teacher, settings(save_steps=2), tmp_path / "whole", seed=3)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert losses_of(again) == pytest.approx(losses_of(whole), rel=1e-6)
    for name, tensor in whole.model.state_dict().items():
        assert torch.allclose(tensor, again.model.state_dict()[name], atol=1e-6), name


class BrokenTeacher:
    """A teacher in memory whose hidden states at one record's targets are not numbers."""

    def __init__(self, teacher: OnlineTeacher, record_id: str) -> None:
        self.teacher, self.record_id, self.needs_batch = teacher, record_id, True

    def distribution(self, batch, asked):
        found = self.teacher.distribution(batch, asked)
        owners = [batch.record_of(target) for target in range(len(batch.labels))]
        broken = torch.tensor([owner == self.record_id for owner in owners])[:, None]
        return Full(found.hidden.masked_fill(broken, float("nan")), found.head, found.vocab_size)


def broken_student(student_dir: Path):
    """A student that gives nothing but NaN once it has read token 550."""
    model, tokenizer = student_of(student_dir)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[550] = float("nan")
    return model, tokenizer


def with_token_550(examples: list[Example], index: int) -> list[Example]:
    changed = list(examples)
    changed[index] = replace(changed[index], prompt=[550, *changed[index].prompt])
    return changed


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("hard_weight", [0.0, 0.5])
def test_a_teacher_that_is_not_finite_stops_training_and_names_the_record(
    student_dir, tiny_model, examples, tmp_path, packing, hard_weight
):
    model, tokenizer = student_of(student_dir)
    teacher = BrokenTeacher(online(tiny_model), "record-7")
    wanted = settings(packing=packing, hard_weight=hard_weight)
    trainer = kd_trainer(model, tokenizer, examples, teacher, wanted, tmp_path, seed=3)
    with pytest.raises(StageError, match=r"the soft term .* for record-7: the teacher's distribution"):
        trainer.train()


def test_a_student_that_is_not_finite_stops_training_and_names_the_record(student_dir, tiny_model, examples, tmp_path):
    model, tokenizer = broken_student(student_dir)
    broken = with_token_550(examples, 7)
    trainer = kd_trainer(model, tokenizer, broken, online(tiny_model), settings(), tmp_path, seed=3)
    with pytest.raises(StageError, match=r"the soft and the hard term .* for record-7: the student's logits"):
        trainer.train()


@pytest.mark.parametrize("packing", [False, True])
def test_sft_that_is_not_finite_stops_and_names_the_records_of_the_batch(student_dir, examples, tmp_path, packing):
    model, tokenizer = broken_student(student_dir)
    wanted = settings(method="sft", batch_size=1, packing=packing)
    trainer = sft_trainer(model, tokenizer, with_token_550(examples, 7), wanted, tmp_path, seed=3)
    with pytest.raises(StageError, match="the hard term .* over record-7 ->"):
        trainer.train()


@pytest.mark.parametrize("method", ["sft", "kd"])
def test_a_gradient_that_is_not_finite_stops_before_it_is_saved(student_dir, tiny_model, examples, tmp_path, method):
    model, tokenizer = student_of(student_dir)
    wanted = settings(method=method, save_steps=1, batch_size=6)
    if method == "sft":
        trainer = sft_trainer(model, tokenizer, examples, wanted, tmp_path, seed=3)
    else:
        trainer = kd_trainer(model, tokenizer, examples, online(tiny_model), wanted, tmp_path, seed=3)
    seen = []

    def from_the_third_step_on(gradient):
        seen.append(gradient)
        return gradient * float("nan") if len(seen) > 2 else gradient

    model.model.norm.weight.register_hook(from_the_third_step_on)
    with pytest.raises(
        StageError, match=r"the gradient is not finite .* over record-\d+, .*the last checkpoint is kept"
    ):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_an_adapter_on_the_output_layer_is_refused(student_dir, tiny_model, examples, tmp_path):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = student_of(student_dir)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ModelError, match="lm_head"):
        kd_trainer(adapted, tokenizer, examples, online(tiny_model), settings(), tmp_path, seed=3)


def test_a_student_made_for_distillation_still_generates_and_saves_as_before(student_dir, tmp_path):
    model, tokenizer = student_of(student_dir)
    ids = torch.tensor([[5, 9, 33, 12, 8]])
    before = model.generate(ids, max_new_tokens=5, do_sample=False), model(ids, labels=ids).loss
    add_distillation(model)
    assert torch.equal(before[0], model.generate(ids, max_new_tokens=5, do_sample=False))
    assert torch.equal(before[1], model(ids, labels=ids).loss)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_several_gpus_in_sight_of_one_process_do_not_make_replicas(tmp_path):
    arguments = TrainingArguments(**common_arguments(settings(), tmp_path, seed=0))
    arguments._n_gpu = 4
    assert one_device(arguments).n_gpu == 1
    assert arguments.train_batch_size == settings().batch_size


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
