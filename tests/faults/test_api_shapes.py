"""Forty shapes of malformed replies: each is read for what it holds or named for what it lacks, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.faults.api import Api, ApiRun
from tests.faults.fake_shapes import SHAPES
from tests.faults.fake_teacher import answer_to

MOST_MB = 200
"""Memory that malformed replies may take beside what a run takes anyway."""

MOST_ATTEMPTS = 4

READ = {
    *("content_in_parts", "wrong_content_type", "no_usage", "negative_usage", "usage_a_text", "usage_of_texts"),
    *("nan", "duplicate_keys", "length", "unknown_finish", "finish_an_object", "two_choices"),
}
"""Shapes that hold the right answer, however oddly."""

READ_OTHERWISE = {"lone_surrogate", "nul"}
"""Shapes whose text has a character that cannot be kept as it is."""

REJECTED = {"content_filter": "content_filter", "refusal": "refused", "null_content": "empty_reply"}
"""Shapes that say that there is no answer, and the reason they are set aside for."""

SAID = {
    "truncated_json": "JSON",
    "html": "JSON",
    "events": "JSON",
    "invalid_utf8": "JSON",
    "nested": "JSON",
    "huge_integers": "JSON",
    "empty_body": "empty body",
    "a_list": "not a JSON object",
    "error_inside": "the model is overloaded",
    "no_choices": "no choices",
    "empty_choices": "empty choices",
    "null_choice": "choice",
    "choices_an_object": "choices",
    "null_message": "no message",
    "content_a_number": "content",
    "big": "bytes",
    "big_in_chunks": "bytes",
    "gzip_bomb": "bytes when decompressed",
    "gzip_truncated": "compression",
    "gzip_that_is_none": "compression",
    "chunks_that_stop": "breaks off",
    "fewer_bytes_than_said": "breaks off",
    "not_http": "",
    "endless_header": "",
    "bad_length": "",
}
"""Shapes that are no answer: they are tried again a few times, then failed; what is said about them, where it
is not left to the HTTP library."""

AGAIN = "the reply to the request before, again"
"""What may be said in place of it, as some of these replies are the same for every question."""

GIVEN_UP = sorted(set(SAID))


@dataclass
class Shapes:
    """What became of malformed replies."""

    num_shapes: int = 0
    num_records: int = 0
    extra_mb: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)


def questions(names: list[str], per_shape: int) -> list[str]:
    return [f"[{name}] question {number}" for name in names for number in range(per_shape)]


def told(names: list[str]) -> list[dict[str, object]]:
    return [{"kind": name, "match": f"[{name}]"} for name in names]


def malformed(api: Api, per_shape: int) -> Shapes:
    """One run over all shapes beside as many good records, and a run of the same size without any."""
    names = sorted(SHAPES)
    asked = [*questions(names, per_shape), *questions(["good"], per_shape * len(names))]
    api.teacher.begin()
    usual = api.run(0, questions=asked).generate().ok().peak_mb
    api.teacher.begin(rules=told(names))
    run = api.run(0, questions=asked, timeout=20, patience=300)
    result = run.generate(timeout=500).ok()
    shapes = Shapes(len(names), len(asked), max(0.0, result.peak_mb - usual))
    attempts = api.teacher.log()
    for name in names:
        shapes.reasons[name] = check_shape(run, name, per_shape)
    counts = run.manifest("generate")["counts"]
    assert counts["failed"] == per_shape * len(SAID)
    assert sum(call.kind == "ok" for call in attempts.calls) == per_shape * len(names)
    assert len(attempts.calls) <= per_shape * (2 * len(names) + (MOST_ATTEMPTS - 1) * len(SAID) + 12 * 5)
    assert shapes.extra_mb <= MOST_MB
    return shapes


def check_shape(run: ApiRun, name: str, per_shape: int) -> str:
    """See that each record of a shape went where it belongs; gives what was said about it."""
    asked = set(questions([name], per_shape))
    kept = {row["prompt"][-1]["content"]: row["completion"][-1]["content"] for row in run.kept()}
    rejects = {question: row["reject"] for question, row in run.rejects().items() if question in asked}
    if name in READ:
        assert asked <= set(kept), name
        assert all(kept[question] == answer_to([{"role": "user", "content": question}]) for question in asked), name
        return "read"
    if name in READ_OTHERWISE:
        assert all(kept[question].startswith("The answer is ") for question in asked), name
        return "read"
    assert set(rejects) == asked, name
    wanted = REJECTED.get(name, "failed")
    assert {reject["reason"] for reject in rejects.values()} == {wanted}, name
    said = {reject["detail"] for reject in rejects.values()}
    own = sorted(detail for detail in said if AGAIN not in detail)
    assert all(SAID.get(name, "") in detail for detail in own), (name, said)
    return own[0] if own else AGAIN


def test_every_shape_is_known_to_this_test() -> None:
    known = [*READ, *READ_OTHERWISE, *REJECTED, *SAID]
    assert sorted(known) == sorted(SHAPES) and len(SHAPES) >= 40


def test_every_malformed_reply_is_read_or_named_and_memory_is_bounded(api: Api) -> None:
    shapes = malformed(api, per_shape=3)
    assert len(set(shapes.reasons.values())) >= 12


@pytest.mark.parametrize("name", ["big", "big_in_chunks", "gzip_bomb"])
def test_many_huge_replies_at_once_fit_into_memory(api: Api, name: str) -> None:
    asked = [*questions([name], 16), *questions(["good"], 50)]
    api.teacher.begin()
    usual = api.run(0, questions=asked).generate().ok().peak_mb
    api.teacher.begin(rules=[{**told([name])[0], "times": 1}])
    run = api.run(0, questions=asked, timeout=30)
    assert run.generate().ok().peak_mb <= usual + MOST_MB
    run.assert_complete()


@pytest.mark.parametrize("name", GIVEN_UP)
def test_a_malformed_reply_once_costs_nothing_but_a_call(api: Api, name: str) -> None:
    asked = questions([name], 5)
    api.teacher.begin(rules=[{**told([name])[0], "times": 1}])
    run = api.run(0, questions=asked)
    run.generate().ok()
    run.assert_complete()
    assert api.teacher.count()["num_calls"] == 10


def test_truncated_answers_are_kept_or_rejected_as_told_and_never_asked_for_again(api: Api) -> None:
    for policy, reasons in (("keep", {}), ("reject", {"truncated": 30})):
        api.teacher.begin(finish_reason="length")
        run = api.run(30)
        run.generate(f"generate.truncated={policy}").ok()
        assert api.teacher.count()["num_calls"] == 30
        assert run.manifest("generate")["counts"]["reasons"] == reasons
