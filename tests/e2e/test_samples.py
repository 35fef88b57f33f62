"""Several samples, a vote, keep-k and a fallback end to end: two real models, real questions with published answers."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any

import pytest

from llmdistill.config import Filter, Generate, Model, Prompts, Samples, Verify
from llmdistill.curate.stage import run as curate
from llmdistill.filter.stage import run as run_filter
from llmdistill.generate.stage import read, run
from llmdistill.run.files import read_table
from llmdistill.verify import verify
from tests.runs import pipeline
from tests.tiny import REPO

STRONG = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTIONS = REPO / "tests" / "data" / "commonsense-qa-sample.jsonl"
NUM_SAMPLES = 3
CHOICE = Verify(kind="choice")


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """A run in which a tiny model answers first and SmolLM2 what it got wrong; three samples, votes, one kept."""
    from llmdistill.engines.models import find_model
    from llmdistill.errors import ModelError

    try:
        find_model(STRONG)
    except ModelError as error:
        pytest.skip(f"the small model cannot be had here: {error}")
    settings = pipeline(
        tmp_path_factory.mktemp("표본") / "run",
        prompts=Prompts(path=str(QUESTIONS), held_out=0.0, licence="BSD-3-Clause"),
        teacher=Model(model=str(tiny_model), device="cpu", dtype="float32"),
        generate=Generate(
            mode="answer",
            fallback=Model(model=STRONG, batch_size=36),
            samples=Samples(n=NUM_SAMPLES, vote=True, keep=1),
            max_new_tokens=6,
            temperature=0.7,
        ),
        filter=Filter(verify=CHOICE, judge=None, checks={"truncated": False, "repetition": False, "language": False}),
    )
    read(settings)
    return settings, run(settings)


def rows(settings: Any, name: str) -> list[dict[str, Any]]:
    found = []
    for path in sorted((settings.run_path / name).glob("*.parquet")):
        found += read_table(path).to_pylist()
    return found


def test_every_sample_of_every_question_is_accounted_for(made):
    settings, manifest = made
    counts = manifest.counts
    assert counts.input == 12 * NUM_SAMPLES == counts.kept + counts.rejected + counts.failed
    reasons = Counter(row["reject"]["reason"] for row in rows(settings, "generate") if row.get("reject"))
    assert dict(reasons) == counts.reasons
    per_question = Counter(row["prompt"][-1]["content"] for row in rows(settings, "generate"))
    assert set(per_question.values()) == {NUM_SAMPLES} and len(per_question) == 12


def test_the_fallback_was_asked_exactly_what_the_first_teacher_failed(made):
    _, manifest = made
    first, second = manifest.metrics["rounds"]
    assert [first["model"], second["model"]] != [STRONG, STRONG] and second["model"] == STRONG
    assert (first["asked"], second["asked"]) == (12 * NUM_SAMPLES, 12 * NUM_SAMPLES - first["usable"])
    assert manifest.usage.requests == first["asked"] + second["asked"]
    assert second["usable"] > 0, "SmolLM2 gets a question right now and then"


def test_what_is_kept_is_right_has_the_most_votes_and_is_one_to_a_question(made):
    settings, manifest = made
    by_question = defaultdict(list)
    for row in rows(settings, "generate"):
        by_question[row["prompt"][-1]["content"]].append(row)
    kept = [row for row in rows(settings, "generate") if not row.get("reject")]
    assert len(kept) == manifest.counts.kept == len({row["prompt"][-1]["content"] for row in kept}) > 0
    for row in kept:
        assert verify(row["answer"], row["reference"], CHOICE).ok
        meta = json.loads(row["meta"])
        alike = [
            other
            for other in by_question[row["prompt"][-1]["content"]]
            if other["answer"] and verify(other["answer"], row["answer"], CHOICE).ok
        ]
        assert meta["votes"] == len(alike) and meta["vote_share"] > 0.3


def test_the_stages_behind_take_what_was_kept(made):
    settings, manifest = made
    assert run_filter(settings).counts.kept == manifest.counts.kept
    assert curate(settings).counts.input == manifest.counts.kept
