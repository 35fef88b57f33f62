"""The stage `signals`: what is stored is what the teacher knows, it adds up, and training gets no other store."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from llmdistill.config import Generate, Lora, Model, Signals, Student, Train
from llmdistill.engines.examples import encode_all
from llmdistill.engines.models import find_model, load_tokenizer
from llmdistill.errors import ChangedError, ConfigError, ModelError, RejectsError
from llmdistill.run.manifest import Manifest, read_manifest
from llmdistill.signals.stage import header_of, open_store, run
from llmdistill.stages import stages_of
from llmdistill.templates import TeacherTemplate, load_template
from tests.runs import answered, finish_stage, pipeline
from tests.tiny import PROMPTS, REPO, save_tiny_model


def records():
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").splitlines()[:12]]
    korean = (REPO / "data" / "korean" / "prompts.jsonl").read_text("utf-8").splitlines()[:4]
    made = [answered(text, "A plain answer. " * (number % 5 + 1)) for number, text in enumerate(texts)]
    return made + [answered(json.loads(line)["prompt"], "서울입니다.") for line in korean]


@pytest.fixture
def curated(tmp_path):
    """A run directory whose `curate` is finished: sixteen records and one that is too long."""
    run_dir = tmp_path / "run"
    chosen = [*records(), answered("a long one", "word " * 600)]
    finish_stage(run_dir, "curate", [chosen[:9], chosen[9:]])
    return run_dir


def settings(run_dir, model, train=None, student=None, teacher=None, template="prompts/en/rationale.yaml", **signals):
    return pipeline(
        run_dir,
        teacher=Model(**{"model": str(model), "dtype": "float32", "device": "cpu", **(teacher or {})}),
        student=student or Student(keep_layers=2),
        train=Train(**{"max_length": 400, **(train or {})}),
        generate=Generate(template=template),
        signals=Signals(**{"k": 8, "shard_records": 5, "log_probs": "float32", **signals}),
    )


def files_of(run_dir):
    folder = run_dir / "signals"
    names = ["header.json", "rejects.parquet", *(path.name for path in sorted(folder.glob("part-*")))]
    return {name: (folder / name).read_bytes() for name in names}


def test_what_is_stored_is_the_teachers_distribution_as_it_was_asked(curated, tiny_model):
    """The teacher has read its template, the student's tokens have not: the targets are the same."""
    made = settings(curated, tiny_model)
    manifest = run(made)
    assert (manifest.counts.input, manifest.counts.kept, manifest.counts.reasons) == (17, 16, {"too_long_to_train": 1})
    source = find_model(str(tiny_model))
    template, _ = load_template(made.teacher_template, TeacherTemplate)
    examples, _ = encode_all(records(), load_tokenizer(source), [2], 400, template)
    store = open_store(made, examples)
    assert sorted(store.record_ids) == sorted(example.record_id for example in examples)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_model)
    for example in examples:
        asked = example.as_asked()
        assert asked.prompt != example.prompt
        with torch.no_grad():
            logits = teacher(torch.tensor([asked.prompt + asked.target])).logits[0, len(asked.prompt) - 1 : -1]
        wanted = logits.double().log_softmax(-1)
        rows = store.read(example.record_id, example.target)
        np.testing.assert_allclose(rows.log_probs, wanted.topk(8).values, atol=1e-5)
        np.testing.assert_allclose(wanted.gather(1, torch.from_numpy(rows.ids)), rows.log_probs, atol=1e-5)


@pytest.mark.parametrize("mode", ["topk", "sampled"])
def test_the_manifest_says_what_it_took_on_disk(curated, tiny_model, mode):
    manifest = run(settings(curated, tiny_model, mode=mode))
    shards = sorted((curated / "signals").glob("part-*"))
    assert len(shards) == manifest.metrics["shards"] == 4
    assert manifest.metrics["bytes"] == sum(path.stat().st_size for path in shards)
    assert manifest.metrics["bytes_per_token"] == round(
        manifest.metrics["bytes"] / manifest.metrics["target_tokens"], 2
    )
    assert set(manifest.outputs) == {path.name for path in shards} | {"header.json", "rejects.parquet"}
    assert manifest.usage.prompt_tokens > manifest.metrics["target_tokens"]
    assert isinstance(read_manifest(curated / "signals"), Manifest)


def test_the_size_of_batches_and_shards_does_not_make_it_another_stage(curated, tiny_model):
    run(settings(curated, tiny_model))
    before = files_of(curated)
    run(settings(curated, tiny_model, shard_records=3, batch_tokens=100))
    assert files_of(curated) == before


def test_a_shard_that_is_gone_is_captured_again_with_the_same_bytes_whatever_the_shards_are_told_to_be(
    curated, tiny_model
):
    run(settings(curated, tiny_model))
    before = files_of(curated)
    (curated / "signals" / "part-00001.arrow").unlink()
    run(settings(curated, tiny_model, shard_records=3))
    assert files_of(curated) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 9}, "signals.k: 8 -> 9"),
        ({"mode": "sampled"}, "signals.mode: topk -> sampled"),
        ({"train": {"temperature": 2.0}}, "signals.temperature: 1.0 -> 2.0"),
        ({"teacher": {"dtype": "bfloat16"}}, "signals.dtype: float32 -> bfloat16"),
        ({"template": "prompts/ko/rationale.yaml"}, "signals.teacher_template_sha256: "),
    ],
    ids=["k", "mode", "temperature", "dtype", "template"],
)
def test_other_settings_are_refused_and_done_over_when_told(curated, tiny_model, changed, message):
    run(settings(curated, tiny_model))
    other = settings(curated, tiny_model, **changed)
    with pytest.raises(ChangedError, match=message):
        run(other)
    with pytest.raises(ChangedError, match="signals"):
        open_store(other)
    run(other, fresh=True)
    assert open_store(other).header == header_of(other)
    assert (curated / "signals.previous" / "manifest.json").exists()


def test_training_on_a_record_without_signals_is_refused_and_names_it(curated, tiny_model):
    made = settings(curated, tiny_model)
    run(made)
    examples, _ = encode_all([answered("다른 질문")], load_tokenizer(find_model(str(tiny_model))), [2], 400)
    with pytest.raises(ChangedError, match=examples[0].record_id):
        open_store(made, examples)


@pytest.mark.parametrize("changed", [{"mode": "sampled"}, {"train": {"temperature": 2.0}}], ids=["mode", "temperature"])
def test_what_vllm_cannot_do_is_refused_before_anything_starts(curated, tiny_model, changed):
    with pytest.raises(ValidationError, match="set signals.engine: transformers"):
        settings(curated, tiny_model, engine="vllm", **changed)


def test_a_student_of_another_vocabulary_is_refused(curated, tiny_model, tmp_path):
    other = save_tiny_model(tmp_path / "other", vocab_size=500)
    with pytest.raises(ModelError, match="tokenizers differ"):
        run(settings(curated, tiny_model, student=Student(model=str(other))))


def test_a_teacher_with_a_padded_vocabulary_is_captured_over_the_shared_ids(curated, tiny_model, tmp_path):
    padded = AutoModelForCausalLM.from_pretrained(tiny_model)
    padded.resize_token_embeddings(640)
    padded.save_pretrained(tmp_path / "padded")
    load_tokenizer(find_model(str(tiny_model))).save_pretrained(tmp_path / "padded")
    made = settings(curated, tmp_path / "padded", student=Student(model=str(tiny_model)), k=640)
    run(made)
    store = open_store(made)
    assert store.header.vocab_size == 600


def test_a_record_with_a_token_of_the_student_alone_is_set_aside_and_counted(curated, tiny_model, tmp_path):
    """The student's tokenizer has one token more, after the shared ones; one record holds it."""
    student = AutoModelForCausalLM.from_pretrained(tiny_model)
    student.resize_token_embeddings(601)
    student.save_pretrained(tmp_path / "student")
    tokenizer = load_tokenizer(find_model(str(tiny_model)))
    tokenizer.add_tokens(["뷁"])
    tokenizer.save_pretrained(tmp_path / "student")
    finish_stage(tmp_path / "other", "curate", [[*records(), answered("새 글자", "답은 뷁입니다.")]])
    made = settings(tmp_path / "other", tiny_model, student=Student(model=str(tmp_path / "student")))
    manifest = run(made)
    assert (manifest.counts.kept, manifest.counts.reasons) == (16, {"unshared_token": 1})
    assert open_store(made).header.vocab_size == 600


def test_nothing_that_can_be_trained_on_is_an_error(curated, tiny_model):
    with pytest.raises(RejectsError, match="too_long_to_train 17|'too_long_to_train': 17"):
        run(settings(curated, tiny_model, train={"max_length": 5}))


def test_a_pipeline_without_the_section_has_no_such_stage(curated, tiny_model):
    plain = settings(curated, tiny_model).model_copy(update={"signals": None})
    assert "signals" not in stages_of(plain)
    assert stages_of(settings(curated, tiny_model)).index("signals") == stages_of(plain).index("train")
    with pytest.raises(ConfigError, match="stores no signals"):
        run(plain)


def test_adapters_and_layers_of_the_student_do_not_matter_to_the_store(curated, tiny_model):
    made = settings(curated, tiny_model)
    run(made)
    other = settings(curated, tiny_model, train={"lora": Lora(), "epochs": 9}, student=Student(keep_layers=1))
    assert open_store(other).header == open_store(made).header
