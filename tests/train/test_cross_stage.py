"""The stage `train` with a teacher of another vocabulary: refused, or crossed; and what its teacher does not know."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmdistill.config import Model, Student, Train
from llmdistill.engines.models import find_model, load_tokenizer
from llmdistill.errors import ModelError
from llmdistill.train.stage import run
from tests.runs import answered, finish_stage, pipeline
from tests.tiny import save_tiny_model

QUESTIONS = ["수도는 어디인가요?", "2+2?", "Name a fruit.", "What is the sea?", "색은?", "Say hello."]


@pytest.fixture
def curated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = [answered(question, f"답은 {number}입니다, the answer.") for number, question in enumerate(QUESTIONS)]
    finish_stage(tmp_path / "run", "curate", [records])
    return tmp_path / "run"


@pytest.fixture(scope="module")
def other_student(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("other"), num_layers=1, seed=9, vocab_size=400)


def settings(run_dir, teacher, student, **train):
    usual = {"epochs": 8, "batch_size": 3, "learning_rate": 1e-2, "device": "cpu", "dtype": "float32"}
    return pipeline(
        run_dir,
        teacher=Model(model=str(teacher), dtype="float32", device="cpu"),
        student=Student(model=str(student)),
        train=Train(**{**usual, **train}),
    )


def test_a_student_of_another_vocabulary_is_trained_where_it_may_be(curated, tiny_model, other_student):
    manifest = run(settings(curated, tiny_model, other_student, cross_tokenizer="uld", hard_weight=1.0))
    losses = [entry["loss"] for entry in manifest.metrics["history"]]
    assert losses[-1] < 0.8 * losses[0]
    assert (manifest.counts.kept, manifest.counts.rejected) == (len(QUESTIONS), 0)


def test_without_leave_it_is_refused_before_the_teacher_is_loaded(curated, tiny_model, other_student):
    with pytest.raises(ModelError, match="set train.cross_tokenizer: uld or train.method: sft"):
        run(settings(curated, tiny_model, other_student))
    assert not (curated / "train" / "student").exists()


def test_the_same_vocabulary_is_not_crossed(curated, tiny_model, tmp_path):
    small = save_tiny_model(tmp_path / "small", num_layers=1, seed=9)
    plain = run(settings(curated, tiny_model, small, epochs=1)).metrics["history"]
    allowed = run(settings(curated, tiny_model, small, epochs=1, cross_tokenizer="uld"), fresh=True).metrics["history"]
    assert [entry["loss"] for entry in plain] == [entry["loss"] for entry in allowed]


def test_a_record_with_a_token_that_the_teacher_lacks_is_set_aside(curated, tiny_model, tmp_path):
    tokenizer = load_tokenizer(find_model(str(tiny_model)))
    tokenizer.add_tokens(["입니다"])
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "wider")
    tokenizer.save_pretrained(tmp_path / "wider")
    plain = answered("Which token?", "None that was added.")
    korean = answered("어느 것?", "이것입니다.")
    finish_stage(tmp_path / "second", "curate", [[plain, korean]])
    manifest = run(settings(tmp_path / "second", tiny_model, tmp_path / "wider", epochs=1))
    assert (manifest.counts.kept, manifest.counts.reasons) == (1, {"unshared_token": 1})


def test_a_padded_teacher_trains_the_student_that_the_unpadded_one_does(curated, tiny_model, tmp_path):
    small = save_tiny_model(tmp_path / "small", num_layers=1, seed=9)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    size = model.get_output_embeddings().weight.shape[0]
    model.resize_token_embeddings(size + 72)
    torch.nn.init.normal_(model.get_output_embeddings().weight.data[size:], std=3.0)
    model.save_pretrained(tmp_path / "padded")
    load_tokenizer(find_model(str(tiny_model))).save_pretrained(tmp_path / "padded")
    plain = run(settings(curated, tiny_model, small, epochs=2)).metrics["history"]
    padded = run(settings(curated, tmp_path / "padded", small, epochs=2), fresh=True).metrics["history"]
    assert [entry["loss"] for entry in padded] == pytest.approx([entry["loss"] for entry in plain], rel=1e-6)
