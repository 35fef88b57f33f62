"""The judge by likelihood: its score is its definition's, and what it cannot read is no score."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmdistill.config import Filter, Judge, Model
from llmdistill.filter.panel import Panel
from llmdistill.record import Record
from llmdistill.run.stage import Stage
from tests.runs import answered, pipeline

ANSWERS = ["Paris is the capital.", "서울은 대한민국의 수도입니다.", "x", "no no no no no no"]
RECORDS = [answered(f"Question {number}: what is it?", answer) for number, answer in enumerate(ANSWERS)]
TOO_LONG = answered("A question with an endless answer?", "word " * 600)


def reference(model_dir: object, record: Record) -> float:
    """The definition: log-softmax in float64 at each position of the answer and of its end token, averaged."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir).double().eval()
    prompt = tokenizer.apply_chat_template(record.prompt, add_generation_prompt=True, return_dict=False)
    answer = [*tokenizer(record.reply, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0]
    logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return float(logprobs[torch.arange(len(answer)), torch.tensor(answer)].mean())


@pytest.fixture
def judged(tiny_model, tmp_path):
    judge = Judge(model=Model(model=str(tiny_model), device="cpu", dtype="float32"), form="likelihood", min_score=-9.0)
    settings = pipeline(tmp_path, filter=Filter(judge=judge))
    records = [*RECORDS, replace(TOO_LONG)]
    with Panel(settings) as panel:
        panel.ask(Stage(settings.run_path, "filter", {}), lambda: [records], len(records))
        return panel.read(records)


def test_the_score_is_the_mean_log_probability_of_answer_and_end_token(judged, tiny_model):
    scores = [item.scores[0] for item in judged[: len(RECORDS)]]
    assert scores == pytest.approx([reference(tiny_model, record) for record in RECORDS], rel=1e-4)
    assert all(score is not None and score < 0 for score in scores)


def test_an_answer_beyond_the_context_is_a_failed_judgement_not_an_unlikely_answer(judged):
    assert (judged[-1].scores, judged[-1].outcome) == ([None], "too_long")


def test_it_needs_a_threshold_of_its_own():
    with pytest.raises(ValueError, match="likelihood has no usual threshold"):
        Judge(form="likelihood")
