"""The stage `train` on a real small model: adapters, a smaller pretrained student, what cannot be trained."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmdistill.config import Lora, Model, Student, Train
from llmdistill.errors import RejectsError
from llmdistill.train.stage import run
from tests.runs import answered, finish_stage, pipeline
from tests.tiny import save_tiny_model

IDS = torch.tensor([[5, 9, 33, 12, 8]])


@pytest.fixture
def curated(tmp_path, monkeypatch):
    """A run directory whose `curate` is finished."""
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    finish_stage(run_dir, "curate", [[answered(f"question {n}", f"answer {n}") for n in range(12)]])
    return run_dir


def settings(run_dir, tiny_model, student=None, **train):
    usual = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "device": "cpu", "dtype": "float32"}
    return pipeline(
        run_dir,
        teacher=Model(model=str(tiny_model), dtype="float32", device="cpu"),
        student=student or Student(keep_layers=2),
        train=Train(**{**usual, **train}),
    )


def logits_of(path):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(path)(IDS).logits


@pytest.mark.parametrize("method", ["sft", "kd"])
def test_a_merged_adapter_computes_what_base_and_adapter_compute(curated, tiny_model, method):
    from peft import PeftModel

    run(settings(curated, tiny_model, method=method, lora=Lora(r=4, alpha=8)))
    base = AutoModelForCausalLM.from_pretrained(curated / "train" / "untrained")
    with torch.no_grad():
        together = PeftModel.from_pretrained(base, curated / "train" / "adapter")(IDS).logits
    merged = logits_of(curated / "train" / "student")
    assert torch.allclose(merged, together, atol=1e-5)
    assert not torch.allclose(merged, logits_of(curated / "train" / "untrained"), atol=1e-3)


def test_a_smaller_pretrained_student_is_trained_from_its_own_weights(curated, tiny_model, tmp_path):
    small = save_tiny_model(tmp_path / "small", num_layers=1, seed=9)
    run(settings(curated, tiny_model, student=Student(model=str(small))))
    assert torch.equal(logits_of(small), logits_of(curated / "train" / "untrained"))
    assert not torch.allclose(logits_of(small), logits_of(curated / "train" / "student"), atol=1e-3)


def test_the_manifest_holds_the_loss_of_every_step_and_the_hash_of_the_weights(curated, tiny_model):
    manifest = run(settings(curated, tiny_model, epochs=2))
    assert [entry["step"] for entry in manifest.metrics["history"]] == [1, 2, 3, 4, 5, 6]
    assert "student/model.safetensors" in manifest.outputs
    assert json.loads((curated / "train" / "manifest.json").read_text())["counts"]["kept"] == 12


def test_nothing_that_fits_is_refused_before_the_first_step(curated, tiny_model):
    with pytest.raises(RejectsError, match="max_length"):
        run(settings(curated, tiny_model, max_length=5))
    assert not (curated / "train" / "student").exists()


def test_too_long_records_are_set_aside_and_counted(curated, tiny_model, tmp_path):
    other = tmp_path / "other"
    long = answered("a long one", "word " * 300)
    finish_stage(other, "curate", [[long, *(answered(f"question {n}", f"answer {n}") for n in range(4))]])
    manifest = run(settings(other, tiny_model, max_length=200))
    assert (manifest.counts.kept, manifest.counts.reasons) == (4, {"too_long_to_train": 1})
