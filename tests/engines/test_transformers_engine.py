"""The embedded engine against the library's own plain forward and generate."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmdistill.config import Model
from llmdistill.engines import Request, Sampling
from llmdistill.engines.models import find_model, load_tokenizer, render_prompt
from llmdistill.engines.transformers import TransformersEngine
from llmdistill.errors import ModelError

QUESTIONS = ["Hi", "What is the capital of France?", "한국의 수도는 어디입니까?", "List three colours. " * 8]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> TransformersEngine:
    return TransformersEngine.open(Model(model=str(tiny_model), batch_size=3), find_model(str(tiny_model)))


def ask(text: str, **kind: object) -> Request:
    return Request(id=f"id-{text[:20]}", messages=[{"role": "user", "content": text}], **kind)


def prompt_of(engine: TransformersEngine, text: str) -> list[int]:
    return render_prompt(engine.tokenizer, [{"role": "user", "content": text}])


def test_greedy_answers_in_a_batch_equal_one_by_one_generation(engine):
    requests = [ask(text, sampling=Sampling(max_new_tokens=12)) for text in QUESTIONS]
    found = {completion.id: completion for completion in engine.complete(requests)}
    for text, request in zip(QUESTIONS, requests, strict=True):
        ids = torch.tensor([prompt_of(engine, text)])
        out = engine.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        expected = out[0, ids.shape[1] :].tolist()
        expected = expected[: expected.index(2)] if 2 in expected else expected
        assert found[request.id].token_ids == expected
        assert found[request.id].prompt_tokens == ids.shape[1]


def test_token_logprobs_equal_a_float64_forward(engine, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    requests = [ask(text, given="An answer of some length: 42.") for text in QUESTIONS]
    for completion in engine.complete(requests):
        text = completion.id.removeprefix("id-")
        prompt = next(prompt_of(engine, question) for question in QUESTIONS if question[:20] == text)
        ids = torch.tensor([prompt + completion.token_ids])
        logprobs = model(ids).logits[0].log_softmax(-1)
        expected = [logprobs[len(prompt) + index - 1, token].item() for index, token in enumerate(completion.token_ids)]
        assert completion.token_logprobs == pytest.approx(expected, abs=1e-4)
        assert completion.token_ids[-1] == engine.tokenizer.eos_token_id


def test_choice_probabilities_equal_a_float64_forward(engine, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    choices = ("1", "2", "3")
    (completion,) = engine.complete([ask("How good?", choices=choices, prefill="Score: ")])
    prompt = prompt_of(engine, "How good?") + engine.tokenizer.encode("Score: ", add_special_tokens=False)
    for choice in choices:
        ids = engine.tokenizer.encode(choice, add_special_tokens=False)
        shared, token = ids[:-1], ids[-1]
        logprobs = model(torch.tensor([prompt + shared])).logits[0, -1].log_softmax(-1)
        assert completion.choice_logprobs[choice] == pytest.approx(logprobs[token].item(), abs=1e-4)


def test_choices_that_begin_alike_are_refused(engine):
    with pytest.raises(ModelError, match="apart"):
        list(engine.complete([ask("How good?", choices=("1", "12"))]))


def test_every_request_gets_exactly_one_completion_of_any_kind(engine):
    requests = [ask(f"generate {n}", sampling=Sampling(max_new_tokens=3)) for n in range(5)]
    requests += [ask(f"choose {n}", choices=("a", "b")) for n in range(4)]
    requests += [ask(f"score {n}", given="x") for n in range(3)]
    assert sorted(c.id for c in engine.complete(requests)) == sorted(request.id for request in requests)
    assert list(engine.complete([])) == []


def test_a_prompt_beyond_the_context_is_an_answer_not_a_crash(engine):
    long, short = ask("word " * 600, sampling=Sampling(8)), ask("word", sampling=Sampling(8))
    found = {completion.id: completion.finish_reason for completion in engine.complete([long, short])}
    assert found[long.id] == "too_long"
    assert found[short.id] != "too_long"


def test_sampled_answers_are_repeatable_and_follow_the_seed(engine):
    def answers(seed: int) -> list[str]:
        requests = [ask(text, sampling=Sampling(10, temperature=1.0, seed=seed)) for text in QUESTIONS]
        return [completion.text for completion in engine.complete(requests)]

    assert answers(1) == answers(1)
    assert answers(1) != answers(2)


def test_a_tokenizer_without_a_chat_template_is_refused(tiny_model, tmp_path):
    for file in tiny_model.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="chat template"):
        load_tokenizer(find_model(str(tmp_path)))


def test_the_revision_of_a_local_model_follows_its_weights(tiny_model, tmp_path):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert find_model(str(tmp_path)).revision == find_model(str(tiny_model)).revision
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert find_model(str(tmp_path)).revision != find_model(str(tiny_model)).revision


def test_pickled_weights_are_not_loaded(tiny_model, tmp_path):
    from llmdistill.engines.models import load_model

    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({"model.embed_tokens.weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load_model(find_model(str(tmp_path)))


def test_batches_keep_every_row_pad_little_and_stay_small():
    from llmdistill.engines.prepare import Prepared
    from llmdistill.engines.transformers import _batches

    draw = random.Random(0)
    lengths = sorted((draw.choice([5, 40, 90, 300, 1500]) + draw.randrange(20) for _ in range(200)), reverse=True)
    items = [Prepared(ask(str(index)), [1] * length, [], {}) for index, length in enumerate(lengths)]
    batches = list(_batches(items, num_tokens=4096, num_rows=16, room=80))
    assert [item for batch in batches for item in batch] == items
    for batch in batches:
        assert len(batch) <= 16
        assert len(batch) == 1 or len(batch) * (batch[0].length + 80) <= 4096
        assert batch[-1].length >= batch[0].length // 4
