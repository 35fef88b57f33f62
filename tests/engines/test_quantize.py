"""Weights in few bits: what is kept of the model, what is saved, what learns beside them."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmdistill.config import Lora, Model, Student, Train
from llmdistill.engines.examples import Example
from llmdistill.engines.models import find_model, load_model, load_tokenizer
from llmdistill.errors import MissingExtraError
from llmdistill.train.on_policy import load_teacher
from llmdistill.train.stage import run
from llmdistill.train.trainers import kd_trainer
from tests.runs import answered, finish_stage, pipeline
from tests.tiny import save_tiny_model
from tests.train.following import online

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="the extra `quantize` (bitsandbytes) is not installed"
)
BITS = ("nf4", "int8")
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("student"), num_layers=2, seed=1)


def examples() -> list[Example]:
    draw = random.Random(0)
    tokens = lambda low, high: [draw.randrange(3, 500) for _ in range(draw.randint(low, high))]  # noqa: E731
    return [Example(f"record-{number}", tokens(2, 9), [*tokens(4, 12), 2]) for number in range(8)]


def log_probs(model) -> torch.Tensor:
    ids = torch.arange(3, 483).reshape(8, 60)
    with torch.no_grad():
        return model(ids).logits.float().log_softmax(-1)


def layer_bytes(model) -> int:
    """Of the linear layers inside the blocks: weights and, where they are quantised, their scales."""
    total = 0
    for layer in model.model.layers:
        total += sum(tensor.numel() * tensor.element_size() for tensor in layer.parameters())
        for module in layer.modules():
            weight = getattr(module, "weight", None)
            state = getattr(weight, "quant_state", None)
            scales = [state.absmax, state.state2.absmax] if state is not None else [getattr(weight, "SCB", None)]
            total += sum(scale.numel() * scale.element_size() for scale in scales if scale is not None)
    return total


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "most_kl", "most_bytes"), [("nf4", 1e-3, 0.2), ("int8", 1e-4, 0.3)])
def test_few_bits_keep_the_distribution_and_take_less_memory(tiny_model, bits, most_kl, most_bytes):
    source = find_model(str(tiny_model))
    whole, few = load_model(source, "float32", "cpu"), load_model(source, "float32", "cpu", bits)
    expected, found = log_probs(whole), log_probs(few)
    kl = (expected.exp() * (expected - found)).sum(-1).mean().item()
    assert 0.0 < kl < most_kl
    assert layer_bytes(few) < most_bytes * layer_bytes(whole)
    assert few.get_output_embeddings().weight.dtype == torch.float32


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_only_the_adapter_beside_few_bits_learns(tiny_model, student_dir, tmp_path, bits):
    source = find_model(str(student_dir))
    model, tokenizer = load_model(source, "float32", "cpu", bits), load_tokenizer(source)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    teacher = online(tiny_model)
    settings = Train(epochs=20, batch_size=4, learning_rate=1e-2, hard_weight=0.0, device="cpu", dtype="float32")
    trainer = kd_trainer(model, tokenizer, examples(), teacher, settings, tmp_path, seed=3)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved and all("lora_" in name for name in moved)


@needs_bitsandbytes
@pytest.mark.parametrize("method", ["sft", "kd", "on_policy"])
def test_the_saved_student_is_its_untrained_self_in_float_with_the_adapter_added(
    tiny_model, student_dir, tmp_path, monkeypatch, method
):
    monkeypatch.chdir(tmp_path)
    finish_stage(tmp_path / "run", "curate", [[answered(f"질문 {n}", f"answer {n}") for n in range(8)]])
    usual = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "device": "cpu", "dtype": "float32"}
    run(
        pipeline(
            tmp_path / "run",
            teacher=Model(model=str(tiny_model), dtype="float32", device="cpu", quantize="int8"),
            student=Student(model=str(student_dir), quantize="nf4"),
            train=Train(method=method, lora=Lora(r=4, alpha=8), hard_weight=0.0, max_new_tokens=4, **usual),
        )
    )
    weights = lambda name: load_file(tmp_path / "run" / "train" / name)  # noqa: E731
    untrained, saved = weights("untrained/model.safetensors"), weights("student/model.safetensors")
    adapter = {name.removeprefix("base_model.model."): tensor.float() for name, tensor in weights(ADAPTER).items()}
    assert untrained.keys() == saved.keys()
    added = 0
    for name, tensor in untrained.items():
        low, high = (adapter.get(name.replace(".weight", f".lora_{side}.weight")) for side in "AB")
        expected = tensor if low is None else tensor + high @ low * (8 / 4)
        added += low is not None and bool(high.any())
        assert saved[name].dtype == torch.float32
        assert torch.allclose(saved[name], expected, atol=1e-6), name
    assert added == 14


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_a_quantised_teacher_is_cut_to_the_students_vocabulary(tiny_model, student_dir, tmp_path, bits):
    teacher = AutoModelForCausalLM.from_pretrained(tiny_model)
    teacher.resize_token_embeddings(teacher.config.vocab_size + 40)
    teacher.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(find_model(str(tiny_model)))
    tokenizer.save_pretrained(tmp_path)
    student = load_model(find_model(str(student_dir)), "float32", "cpu")
    cut = load_teacher(find_model(str(tmp_path)), student, tokenizer, "float32", "cpu", bits)
    whole = load_model(find_model(str(tiny_model)), "float32", "cpu", bits)
    assert torch.allclose(log_probs(cut), log_probs(whole), atol=1e-5)


def test_without_the_package_one_line_names_the_command(tiny_model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        load_model(find_model(str(tiny_model)), "float32", "cpu", "nf4")
    assert str(caught.value) == "quantize: nf4 needs the package bitsandbytes -> pip install 'llmdistill[quantize]'"
