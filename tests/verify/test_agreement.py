"""Verdicts against the labels that were published with real solutions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.verifier_agreement import EXPLAINED, LEAST, Case, judged, share
from tests.tiny import REPO

SAMPLE = REPO / "tests" / "data" / "gsm8k-model-solutions-sample.jsonl"
WHOLE = REPO.parent / "shared" / "data" / "gsm8k-model-solutions.jsonl"


def disagreements(cases: list[Case]) -> set[str]:
    return {case.solution.key for case in cases if not case.agrees}


def test_on_the_sample_every_disagreement_is_an_explained_one() -> None:
    cases = judged(SAMPLE)
    assert len(cases) == 300
    assert {case.solution.is_correct for case in cases} == {True, False}
    assert disagreements(cases) == set(EXPLAINED)


def test_the_verifier_never_contradicts_a_label_of_the_sample() -> None:
    assert not [case for case in judged(SAMPLE) if case.verified.ok is (not case.solution.is_correct)]


@pytest.mark.skipif(not WHOLE.exists(), reason="the whole file of published solutions is not here")
def test_on_the_whole_file_at_least_995_in_1000_agree() -> None:
    cases = judged(Path(WHOLE))
    assert len(cases) == 5276
    assert share(cases) >= LEAST
    assert disagreements(cases) == set(EXPLAINED)
