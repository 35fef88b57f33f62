"""What must not change what is learnt: layout, accumulation, a stop, adapters merged, recomputing, storing.

Losses, gradients and weights of whole trainings are compared in float32 to a relative error of 1e-5.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmdistill.engines.batches import pad
from llmdistill.signals.codec import TopRows, encode
from llmdistill.signals.distributions import TopK
from llmdistill.signals.header import Header
from llmdistill.signals.store import Store, Stored, write_shard
from llmdistill.signals.stored import StoredTeacher
from tests.tiny import save_tiny_model
from tests.train.following import Setting, assert_equal, follow, online, relative_error


@pytest.fixture
def training(tmp_path, tiny_model, small_student):
    return Setting(small_student, online(tiny_model), tmp_path)


@pytest.fixture(scope="module")
def small_student(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("student"), num_layers=2, seed=1)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_model, small_student):
    """KD with the teacher in memory, padded, in batches of 4: ten examples, so the last batch of an epoch is short."""
    return follow(Setting(small_student, online(tiny_model), tmp_path_factory.mktemp("reference")).kd())


def test_training_moves_the_weights_further_than_the_tolerance(reference, training):
    start = training.kd().model.state_dict()
    assert min(relative_error(start[name], weight) for name, weight in reference.weights.items()) > 5e-5


def test_packed_is_padded(reference, training):
    assert_equal(reference, follow(training.kd(packing=True)))


def test_packed_is_padded_with_eager_attention(reference, training):
    def eager(model):
        model.set_attn_implementation("eager")
        return model

    assert_equal(reference, follow(training.kd(prepare=eager, packing=True)))


@pytest.mark.parametrize("packing", [False, True])
def test_accumulating_micro_batches_is_one_batch(reference, training, packing):
    assert_equal(reference, follow(training.kd(batch_size=1, gradient_accumulation=4, packing=packing)))


@pytest.mark.parametrize("packing", [False, True])
def test_recomputing_activations_changes_nothing(reference, training, packing):
    trainer = training.kd(gradient_checkpointing=True, packing=packing)
    assert_equal(reference, follow(trainer))
    assert any(getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules())


@pytest.mark.parametrize("packing", [False, True])
def test_a_run_stopped_in_the_middle_of_an_epoch_and_resumed_is_the_whole_run(reference, training, packing):
    follow(training.kd(save_steps=2, packing=packing))
    rest = follow(training.kd(save_steps=2, packing=packing), training.folder / "checkpoint-4")
    assert len(rest.gradients) == len(reference.gradients) - 4
    rest.gradients = [*reference.gradients[:4], *rest.gradients]
    assert_equal(reference, rest)


@pytest.mark.parametrize("packing", [False, True])
def test_hard_labels_only_is_the_sft_of_trl(training, packing):
    own = follow(training.kd(soft_weight=0.0, hard_weight=1.0, temperature=1.0, packing=packing))
    assert_equal(follow(training.sft(packing=packing)), own)


def test_packed_sft_is_padded_sft(training):
    assert_equal(follow(training.sft()), follow(training.sft(packing=True)))


def test_sft_with_recomputed_activations_and_accumulation_is_sft(training):
    other = training.sft(gradient_checkpointing=True, batch_size=2, gradient_accumulation=2)
    assert_equal(follow(training.sft()), follow(other))


@pytest.mark.parametrize("packing", [False, True])
def test_a_merged_adapter_gives_the_logits_of_model_and_adapter(training, packing):
    from peft import LoraConfig, get_peft_model

    def adapted(model):
        torch.manual_seed(0)
        return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))

    trainer = training.kd(prepare=adapted, packing=packing, gradient_checkpointing=packing)
    followed = follow(trainer)
    assert all("lora_" in name for name in followed.gradients[0])
    ids = torch.tensor([[5, 9, 33, 12, 8]])
    model = trainer.model.eval()
    with torch.no_grad():
        together = model(ids).logits
        with model.disable_adapter():
            untrained = model(ids).logits
        merged = model.merge_and_unload()(ids).logits
    assert float((together - untrained).norm() / together.norm()) > 1e-2
    assert float((together - merged).norm() / together.norm()) <= 1e-5


class EveryToken:
    """A teacher that gives the log-probabilities of all tokens as the k likeliest."""

    def __init__(self, teacher, temperature):
        self.teacher, self.temperature, self.needs_batch = teacher, temperature, True

    def distribution(self, batch, asked):
        logits = self.teacher.distribution(batch, asked).logits()
        log_probs, ids = (logits / self.temperature).log_softmax(-1).sort(-1, descending=True)
        return TopK(ids, log_probs, torch.full((len(ids),), -torch.inf))


def test_top_k_of_the_whole_vocabulary_is_the_full_distribution(reference, training):
    assert_equal(reference, follow(training.kd(teacher=EveryToken(training.teacher, 2.0))))


def captured(teacher, examples, folder, temperature):
    """A store of the log-probabilities of the teacher's whole vocabulary, in float32, two records to a shard."""
    header = Header(
        "teacher", "1", "", "", "", teacher.vocab_size, "topk", teacher.vocab_size, 1, "float32", temperature, 0
    )
    rows = []
    for example in examples:
        batch = pad([example.as_asked()], 2)
        found = EveryToken(teacher, temperature).distribution(batch, batch)
        top = TopRows(found.ids.numpy(), found.log_probs.numpy(), found.tail_log_prob.numpy())
        rows.append(Stored(example.record_id, example.target, encode(header, top)))
    for index in range(0, len(rows), 2):
        write_shard(folder, index // 2, header, rows[index : index + 2])
    return Store.open(folder, header)


@pytest.mark.parametrize("packing", [False, True])
def test_the_stored_distribution_is_the_one_in_memory(reference, training, packing):
    store = captured(training.teacher, training.examples, training.folder / "signals", 2.0)
    stored = StoredTeacher(store)
    assert_equal(reference, follow(training.kd(teacher=stored, packing=packing, batch_size=2, gradient_accumulation=2)))


def test_what_is_stored_after_the_prompt_as_the_teacher_was_asked_is_what_it_gives_in_memory(training):
    training.examples = [replace(each, teacher_prompt=[9, 9, *each.prompt, 7]) for each in training.examples]
    stored = StoredTeacher(captured(training.teacher, training.examples, training.folder / "signals", 2.0))
    assert_equal(follow(training.kd()), follow(training.kd(teacher=stored)))
