"""Comparisons: both orders count, disagreement is a tie, and every pair is asked about once."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmdistill.engines.base import Completion
from llmdistill.errors import ConfigError
from llmdistill.filter.judge import Manner, Question, Said
from llmdistill.filter.pairwise import Comparison, Pairwise, compared, preference_in
from llmdistill.record import Record
from llmdistill.templates import load_template
from tests.filter.judging import asked, fenced, judge, judged_by, judging, model, record

PAIRWISE = "prompts/en/judge-pairwise.yaml"
TEMPLATE, TEMPLATE_HASH = load_template(PAIRWISE, Comparison)
WORDS = ("A", "B", "tie")
SHARE = {"A": 1.0, "B": 0.0, "tie": 0.5}


def settings_for(url: str, **more: Any) -> dict[str, Any]:
    return {"model": model(url), "form": "pairwise", "rubric": PAIRWISE, **more}


def by_definition(first: str, second: str) -> tuple[float, str]:
    """Written from the definition: who wins each order, with the candidate first and then second."""
    wins = [
        "tie" if word == "tie" else "ours" if word == own else "theirs" for word, own in ((first, "A"), (second, "B"))
    ]
    if wins[0] != wins[1]:
        return 0.5, "flipped"
    return {"ours": 1.0, "theirs": 0.0, "tie": 0.5}[wins[0]], "parsed"


@pytest.mark.parametrize(("first", "second"), list(itertools.product(WORDS, WORDS)))
def test_each_combination_of_two_orders_has_the_score_of_its_definition(first: str, second: str) -> None:
    said = compared(Said(SHARE[first], "parsed"), Said(SHARE[second], "parsed"))
    assert (said.value, said.outcome) == by_definition(first, second)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(WORDS, WORDS)))
@pytest.mark.parametrize("scoring", ["auto", "written"])
def test_each_combination_is_read_so_over_http(first: str, second: str, scoring: str, tmp_path: Path) -> None:
    def say(text: str) -> str:
        return f"Verdict: {first if fenced(text)[1] == 'Ours.' else second}"

    with judging(say) as server:
        (found,) = judge(
            judged_by(tmp_path, settings_for(server.url, scoring=scoring)), record("Which?", "Ours.", "Theirs.")
        )
        assert len(server.seen) == 2
    value, outcome = by_definition(first, second)
    assert (found.scores, found.outcome, found.error) == ([value], "parsed", "")
    assert [(verdict.score, verdict.outcome) for verdict in found.verdicts] == [(value, outcome)]


@given(st.floats(-8, 0), st.floats(-8, 0), st.floats(-8, 0), st.floats(-8, 0))
def test_probabilities_give_the_mean_of_both_orders_unless_they_disagree(a1: float, b1: float, a2: float, b2: float):
    orders = [
        preference_in(Completion("x", finish_reason="scored", choice_logprobs={"A": a, "B": b}), "", [])
        for a, b in ((a1, b1), (a2, b2))
    ]
    ours = [math.exp(a1) / (math.exp(a1) + math.exp(b1)), math.exp(b2) / (math.exp(a2) + math.exp(b2))]
    assume(all(abs(share - 0.5) > 1e-9 for share in ours))  # nearer to a tie than that, rounding decides
    said = compared(*orders)
    if (ours[0] > 0.5) == (ours[1] > 0.5):
        assert said.outcome == "parsed" and said.value == pytest.approx(sum(ours) / 2, rel=1e-9)
    else:
        assert (said.value, said.outcome) == (0.5, "flipped")


@pytest.mark.parametrize(
    "completion",
    [
        Completion("x", finish_reason="scored", choice_logprobs={"A": -60.0, "B": -60.0}),
        Completion("x", finish_reason="scored", choice_logprobs={"A": math.nan, "B": -1.0}),
        Completion("x", finish_reason="scored", choice_logprobs=None),
        Completion("x", "Verdict: A", finish_reason="length"),
        Completion("x", "I cannot say.", finish_reason="stop"),
        Completion("x", finish_reason="too_long"),
        Completion("x", finish_reason="failed", error="down"),
    ],
    ids=["no mass", "nan", "nothing", "cut off", "no verdict", "too long", "failed"],
)
@pytest.mark.parametrize("place", [0, 1])
def test_an_order_without_a_verdict_fails_the_comparison(completion: Completion, place: int) -> None:
    said = [Said(1.0, "parsed"), Said(0.0, "parsed")]
    said[place] = preference_in(completion, "", [])
    assert compared(*said).value is None and compared(*said).outcome not in ("parsed", "flipped")
    assert bool(compared(*said).error) == (completion.finish_reason == "failed")


def test_a_judge_that_always_says_a_finds_only_ties(tmp_path: Path) -> None:
    records = [record(f"Question {number}?", f"Answer {number}.", f"Reference {number}.") for number in range(20)]
    with judging(lambda _: "A") as server:
        found = judge(judged_by(tmp_path, settings_for(server.url)), *records)
    assert [item.scores for item in found] == [[0.5]] * 20
    assert {verdict.outcome for item in found for verdict in item.verdicts} == {"flipped"}


def longer(text: str) -> str:
    _, first, second = fenced(text)
    return "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"


def test_a_judge_that_prefers_the_longer_answer_does_so_in_both_orders(tmp_path: Path) -> None:
    records = [
        record("One?", "long " * 9, "short"),
        record("Two?", "short", "long " * 9),
        record("Three?", "abc", "xyz"),
    ]
    with judging(longer) as server:
        found = judge(judged_by(tmp_path, settings_for(server.url, scoring="written")), *records)
        assert len(server.seen) == 6
    assert [item.scores for item in found] == [[1.0], [0.0], [0.5]]
    assert [item.verdicts[0].outcome for item in found] == ["parsed"] * 3


def test_no_reference_is_no_opponent_and_an_equal_one_a_tie_and_nobody_is_asked(tmp_path: Path) -> None:
    records = [record("One?", "Yes."), record("Two?", "Yes.", " Yes.\n"), record("Three?", "Yes.", "")]
    found = judge(judged_by(tmp_path, settings_for("http://127.0.0.1:9/v1")), *records)
    assert [(item.scores, item.outcome, item.error) for item in found] == [
        ([None], "no_opponent", ""),
        ([0.5], "parsed", ""),
        ([None], "no_opponent", ""),
    ]


def samples() -> list[Record]:
    """Four answers to one prompt, two of them alike, two to another, and one without company."""
    texts = [
        ("One?", "aaaa"),
        ("Two?", "b"),
        ("One?", "aa"),
        ("One?", "aaa"),
        ("Two?", "bb"),
        ("One?", "aa"),
        ("3?", "c"),
    ]
    return [record(prompt, answer, sample=number) for number, (prompt, answer) in enumerate(texts)]


def test_samples_are_compared_each_with_each_and_a_pair_of_texts_once_in_both_orders(tmp_path: Path) -> None:
    with judging(longer) as server:
        given_settings = judged_by(tmp_path, settings_for(server.url, against="samples"))
        found = judge(given_settings, *samples())
        orders = Counter(tuple(fenced(asked(seen))) for seen in server.seen)
    assert [item.scores[0] for item in found[:6]] == pytest.approx([1, 0, 0.5 / 3, 2 / 3, 1, 0.5 / 3])
    assert (found[6].scores, found[6].outcome) == ([None], "no_opponent")
    pairs = Counter((prompt, *sorted((first, second))) for prompt, first, second in orders.elements())
    assert pairs == {
        ("One?", "aa", "aaaa"): 2,  # two records say "aa"
        ("One?", "aaa", "aaaa"): 2,
        ("One?", "aa", "aaa"): 2,
        ("Two?", "b", "bb"): 2,
    }
    assert set(orders.values()) == {1}


def test_the_order_of_the_records_changes_no_question(tmp_path: Path) -> None:
    pairwise = Pairwise(TEMPLATE, TEMPLATE_HASH, "judge", Manner(), "samples")
    questions = [{q.request.id for q in pairwise.questions(order)} for order in (samples(), samples()[::-1])]
    assert questions[0] == questions[1] and len(questions[0]) == 8


def test_a_sample_that_breaks_the_judge_fails_alone(tmp_path: Path) -> None:
    records = [record("One?", answer, sample=number) for number, answer in enumerate(("poison", "b", "bb"))]
    with judging(lambda text: "nothing to say" if "poison" in text else longer(text)) as server:
        found = judge(judged_by(tmp_path, settings_for(server.url, against="samples")), *records)
    assert [(item.scores[0], item.outcome) for item in found] == [
        (None, "no_verdict"),
        (0.0, "parsed"),
        (1.0, "parsed"),
    ]


def test_a_call_without_an_answer_leaves_both_records_owed() -> None:
    records = [record("One?", answer, sample=number) for number, answer in enumerate(("a", "bb"))]
    pairwise = Pairwise(TEMPLATE, TEMPLATE_HASH, "judge", Manner(), "samples")

    def answer(question: Question) -> Said:
        return pairwise.read(Completion(question.request.id, finish_reason="failed", error="down"), question)

    found = pairwise.judgements(records, answer)
    assert [(item.score, item.error) for item in found] == [(None, "down")] * 2


@settings(max_examples=100)
@given(*[st.text(alphabet="`a\n B", max_size=30) for _ in range(3)])
def test_no_text_gets_out_of_its_fence(prompt: str, ours: str, theirs: str) -> None:
    pairwise = Pairwise(TEMPLATE, TEMPLATE_HASH, "judge", Manner(), "reference")
    for question in pairwise.questions([record(prompt, ours, theirs or "x")]):
        shown = fenced(question.request.messages[-1]["content"])
        assert [text.strip() for text in shown] in (
            [prompt.strip(), ours.strip(), (theirs or "x").strip()],
            [prompt.strip(), (theirs or "x").strip(), ours.strip()],
        )


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("one.yaml", "user: '{{ first }}'", "second"),
        ("other.yaml", "user: '{{ second }}'", "first"),
        ("unknown.yaml", "user: '{{ first }} {{ second }} {{ answer }}'", "answer"),
        ("pointwise.yaml", "user: '{{ answer }}'\nscores: {'1': 1, '2': 2}", "scores"),
    ],
)
def test_a_template_that_does_not_show_both_is_refused(name: str, text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as refused:
        judge(judged_by(tmp_path, settings_for("http://127.0.0.1:9/v1", rubric=str(tmp_path / name))), record("?"))
    assert what in str(refused.value) and "judge-pairwise.yaml" in str(refused.value)
