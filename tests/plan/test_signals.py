"""The plan of stored signals: what they take on disk and in time, and that training then needs no teacher."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llmdistill.config import Curate, Generate, Model, Prompts, Signals, Student, Train
from llmdistill.plan import make_plan
from llmdistill.signals.codec import TopRows, encode
from llmdistill.signals.header import Header
from llmdistill.stages import stages_of
from tests.runs import pipeline

NUM, ANSWER = 30, 100


@pytest.fixture
def prompts(tmp_path) -> Prompts:
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{n} 더하기 {n * 7}은 얼마입니까?"} for n in range(NUM)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return Prompts(path=str(path), held_out=0.0)


def plan_of(folder, model, prompts, signals, method="kd"):
    settings = pipeline(
        folder / "run",
        prompts=prompts,
        teacher=Model(model=str(model)),
        student=Student(keep_layers=2),
        generate=Generate(template="prompts/en/answer.yaml", max_new_tokens=ANSWER),
        curate=Curate(size=20),
        train=Train(method=method, epochs=2),
        signals=signals,
    )
    made = make_plan(settings)
    assert [step.stage for step in made.steps] == stages_of(settings)
    return {step.stage: step for step in made.steps}


def test_bytes_are_those_that_the_codec_writes(tmp_path, tiny_model, prompts):
    step = plan_of(tmp_path, tiny_model, prompts, Signals(k=16))["signals"]
    header = Header("", "", "", "", "", 600, "topk", 16, 50, "uint8", 1.0, 0)
    even = np.full((ANSWER, 16), -np.log(32), np.float32)
    rows = TopRows(np.tile(np.arange(16), (ANSWER, 1)), even, np.full(ANSWER, -np.log(2), np.float32))
    assert (step.records, step.disk_bytes) == (20, 20 * len(encode(header, rows)))


@pytest.mark.parametrize("change", [{"k": 64}, {"log_probs": "float32"}])
def test_more_tokens_or_finer_numbers_take_more(tmp_path, tiny_model, prompts, change):
    less = plan_of(tmp_path, tiny_model, prompts, Signals())["signals"]
    more = plan_of(tmp_path, tiny_model, prompts, Signals(**change))["signals"]
    assert more.disk_bytes > 1.5 * less.disk_bytes
    assert (more.records, more.tokens_in) == (less.records, less.tokens_in)


def test_draws_take_less_than_as_many_likeliest_tokens(tmp_path, tiny_model, prompts):
    draws = plan_of(tmp_path, tiny_model, prompts, Signals(mode="sampled", draws=50))["signals"]
    assert 0 < draws.disk_bytes < plan_of(tmp_path, tiny_model, prompts, Signals(k=50))["signals"].disk_bytes


def test_the_teacher_reads_each_record_once_and_training_leaves_it_out(tmp_path, tiny_model, prompts):
    stored = plan_of(tmp_path, tiny_model, prompts, Signals())
    online, text = plan_of(tmp_path, tiny_model, prompts, None), plan_of(tmp_path, tiny_model, prompts, None, "sft")
    assert stored["train"].tokens_in == online["train"].tokens_in < 2 * stored["signals"].tokens_in
    # The machine's speed is measured anew for each plan, so seconds are compared within one.
    shares = [steps["train"].seconds / steps["generate"].seconds for steps in (stored, text, online)]
    assert shares[0] == pytest.approx(shares[1], rel=1e-6)
    assert shares[2] > 1.3 * shares[1]


def test_without_the_model_bytes_and_time_are_unknown(tmp_path, prompts):
    step = plan_of(tmp_path, "no/model", prompts, Signals())["signals"]
    assert (step.records, step.disk_bytes, step.seconds) == (20, None, None)
