"""Which of several answers go on: each rule against a slow reference, and independent of the order of the samples."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction

import pytest

from llmdistill.config import Samples, Verify
from llmdistill.generate.samples import Sample, choose, expand, keep, normalise, pass_rate, sameness, vote, within
from llmdistill.record import Record, Reject, record_id
from llmdistill.run.stage import Outcome

MATH = Verify(kind="math")
PROMPT = [{"role": "user", "content": "민수는 사과를 몇 개 가지고 있나요?"}]
NUM_INSTANCES = 250


def answer(number: int, text: str, reply: str | None = None) -> Record:
    """Sample number so and so, which answers `text`."""
    said = [{"role": "assistant", "content": text if reply is None else reply}]
    return Record(record_id(PROMPT, number), PROMPT, said, answer=text, reference="18")


def fates(outcome: Outcome) -> dict[str, tuple[str, str]]:
    """Record id to (reason, detail), empty for kept ones; fails on a record that is there twice."""
    pairs = [(record.id, ("", "")) for record in outcome.kept]
    pairs += [(reject.record.id, (reject.reason, reject.detail)) for reject in outcome.rejected]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def metas(outcome: Outcome) -> dict[str, str]:
    records = [*outcome.kept, *(reject.record for reject in outcome.rejected)]
    return {record.id: record.meta for record in records}


def test_the_first_sample_keeps_its_id_and_the_others_have_one_each():
    record = Record(record_id(PROMPT), PROMPT, reference="18", meta='{"mine": 1}')
    samples = expand(record, 4)
    assert [sample.id for sample in samples] == [record_id(PROMPT, number) for number in range(4)]
    assert samples[0].id == record.id and len({sample.id for sample in samples}) == 4
    assert [sample.meta for sample in samples] == [f'{{"mine": 1, "sample": {n}}}' for n in range(4)]
    assert expand(record, 1) == [record]
    assert expand(record, 2) == samples[:2]


def votes_by_definition(answers: dict[str, str], min_agreement: Fraction) -> dict[str, str]:
    """Self-consistency over answers that are equal or not: every candidate's votes counted one by one."""
    votes = {id_: sum(1 for other in answers.values() if other == text) for id_, text in answers.items()}
    most = max(votes.values())
    winner = answers[min(id_ for id_, count in votes.items() if count == most)]
    if Fraction(most, len(answers)) < min_agreement:
        return dict.fromkeys(answers, "no_agreement")
    return {id_: "" if text == winner else "outvoted" for id_, text in answers.items()}


FORMS = ("{}", "{}.00", "Answer: {}", "정답: {}", "The answer is {}.", "\\boxed{{{}}}", "{} dollars", "**{}**")


@pytest.mark.parametrize("verify", [None, MATH], ids=["text", "math"])
def test_the_vote_is_the_one_by_definition_whatever_the_order(verify):
    draw = random.Random(1)
    seen = Counter()
    for _ in range(NUM_INSTANCES):
        numbers = [draw.choice((7, 18, 18, 25, 26)) for _ in range(draw.randint(1, 9))]
        written = [
            draw.choice(FORMS).format(n) if verify else f" {n}{draw.choice(['', '.', ' ', '!'])}" for n in numbers
        ]
        records = [answer(index, text) for index, text in enumerate(written)]
        least = draw.choice((Fraction(0), Fraction(1, 2), Fraction(3, 4), Fraction(1)))
        found = vote(records, float(least), sameness(verify))
        expected = votes_by_definition({r.id: str(n) for r, n in zip(records, numbers, strict=True)}, least)
        assert {id_: reason for id_, (reason, _) in fates(found).items()} == expected, written
        seen += Counter(expected.values())
        draw.shuffle(records)
        again = vote(records, float(least), sameness(verify))
        assert (fates(again), metas(again)) == (fates(found), metas(found))
    assert min(seen[reason] for reason in ("", "outvoted", "no_agreement")) > 50


def test_a_vote_says_how_many_there_were():
    outcome = vote([answer(n, text) for n, text in enumerate("aabaacac")], 0.0, sameness(None))
    assert sorted(Counter(reject.detail for reject in outcome.rejected).items()) == [
        ("1 of 8 votes", 1),
        ("2 of 8 votes", 2),
    ]
    assert all('"vote_share": 0.625, "votes": 5' in record.meta for record in outcome.kept)


def test_only_one_answer_of_a_group_is_compared():
    compared = []

    def same(one: Record, other: Record) -> bool:
        compared.append((one.id, other.id))
        return one.answer == other.answer

    vote([answer(n, "ab"[n % 2]) for n in range(100)], 0.0, same)
    assert len(compared) <= 2 * 100


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("Seoul", " seoul. ", True),
        ("ＳＥＯＵＬ", "Seoul!", True),
        ("서울", "서울。", True),
        ("서울", "\u1109\u1165\u110b\u116e\u11af", True),
        ("서울", "부산", False),
        ("50%", "50", False),
        ("C#", "C", False),
        ("-5", "5", False),
        ("3.5", "3,5", False),
        ("...", "!", False),
    ],
)
def test_answers_without_a_verifier_are_equal_but_for_case_width_spaces_and_the_last_mark(one, other, equal):
    assert (normalise(one) == normalise(other)) is equal


def test_math_answers_vote_together_however_they_are_written_and_options_by_label_or_text():
    math_answers = ["18", "$18", "So it is 9 + 9 = 18\nA: 18", "정답: 18", "열여덟", "36/2"]
    outcome = vote([answer(n, text) for n, text in enumerate([*math_answers, "17"])], 0.0, sameness(MATH))
    assert [record.answer for record in outcome.kept] == math_answers
    options = Verify(kind="choice", choices=("Paris", "서울"))
    outcome = vote([answer(n, text) for n, text in enumerate(["B", "서울", "(b)", "A"])], 0.0, sameness(options))
    assert [record.answer for record in outcome.kept] == ["B", "서울", "(b)"]


def test_the_pass_rate_is_the_share_of_right_among_decided():
    draw = random.Random(2)
    for _ in range(NUM_INSTANCES):
        verdicts = [draw.choice((True, False, None)) for _ in range(draw.randint(0, 8))]
        rate = pass_rate(verdicts)
        decided = len(verdicts) - verdicts.count(None)
        if decided == 0:
            assert rate is None
            continue
        share = Fraction(verdicts.count(True), decided)
        assert rate is not None and (rate.right, rate.decided) == (verdicts.count(True), decided)
        for most in range(1, 12):
            assert rate.quota(most) == max(1, math.ceil(most * (1 - share)))


def test_prompts_outside_the_bounds_go_with_all_their_samples():
    records = [answer(n, str(n)) for n in range(3)]
    for right, decided in itertools.product(range(9), range(1, 9)):
        if right > decided:
            continue
        found = within(records, pass_rate([True] * right + [False] * (decided - right)), (0.25, 0.75))
        share = Fraction(right, decided)
        reason = "too_hard" if share < Fraction(1, 4) else "too_easy" if share > Fraction(3, 4) else ""
        assert {fate[0] for fate in fates(found).values()} == {reason}
        assert len(fates(found)) == 3
        if reason:
            assert all(fate[1].startswith(f"{right} of {decided} right") for fate in fates(found).values())
        assert all(f'"pass_rate": {round(float(share), 6)}' in meta for meta in metas(found).values())
    assert {fate[0] for fate in fates(within(records, None, (0.0, 1.0))).values()} == {"no_pass_rate"}


def kept_by_definition(replies: dict[str, str], quota: int, seed: int) -> dict[str, str]:
    """Records in the order of their hash; each distinct reply once, then as many as there is room for."""
    by_hash = sorted(replies, key=lambda i: hashlib.blake2b(f"{seed} {i}".encode(), digest_size=8).hexdigest())
    first = [id_ for n, id_ in enumerate(by_hash) if replies[id_] not in [replies[other] for other in by_hash[:n]]]
    return {
        id_: "same_answer_text" if id_ not in first else "" if first.index(id_) < quota else "not_kept"
        for id_ in replies
    }


def test_keep_draws_by_hash_among_different_replies_whatever_the_order():
    draw = random.Random(3)
    seen = Counter()
    for _ in range(NUM_INSTANCES):
        records = [answer(n, "18", draw.choice("가나다라마바사아")) for n in range(draw.randint(1, 9))]
        quota, seed = draw.randint(1, 5), draw.randrange(1000)
        expected = kept_by_definition({record.id: record.reply for record in records}, quota, seed)
        found = keep(records, quota, seed)
        assert {id_: reason for id_, (reason, _) in fates(found).items()} == expected
        seen += Counter(expected.values())
        order = [record.id for record in records]
        assert [record.id for record in found.kept] == [id_ for id_ in order if not expected[id_]]
        draw.shuffle(records)
        assert fates(keep(records, quota, seed)) == fates(found)
    assert min(seen.values()) > 50 and len(seen) == 3


def test_another_seed_keeps_others():
    records = [answer(n, "18", str(n)) for n in range(20)]
    drawn = [{record.id for record in keep(records, 5, seed).kept} for seed in range(10)]
    assert all(len(one) == 5 for one in drawn) and len(set(map(frozenset, drawn))) == 10


def chosen_by_definition(samples: list[Sample], settings: Samples, undecided: str, seed: int) -> dict[str, str]:
    """All rules one after the other, on plain dicts. Answers are plain numbers, equal as text."""
    fate = {s.result.record.id: s.result.reason for s in samples if isinstance(s.result, Reject)}
    left = {s.result.id: s for s in samples if isinstance(s.result, Record)}

    def drop(ids: dict[str, str]) -> None:
        for id_, reason in ids.items():
            if reason:
                fate[id_] = reason
                left.pop(id_)

    decided = [s.first_ok for s in samples if s.first_ok is not None]
    share = Fraction(sum(decided), len(decided)) if decided else None
    if settings.pass_rate != (0.0, 1.0) or settings.keep_by == "difficulty":
        low, high = map(Fraction, settings.pass_rate)
        reason = "no_pass_rate" if share is None else "too_hard" if share < low else "too_easy" if share > high else ""
        drop(dict.fromkeys(left, reason))
    if settings.vote and left:
        texts = {id_: s.result.answer for id_, s in left.items()}
        drop(votes_by_definition(texts, Fraction(settings.min_agreement)))
    if settings.keep or settings.pass_rate != (0.0, 1.0):
        words = {True: "", False: "wrong_answer", None: "unverifiable" if undecided == "reject" else ""}
        drop({id_: words[s.ok] for id_, s in left.items()})
    if settings.keep and left:
        quota = settings.keep
        if settings.keep_by == "difficulty":
            quota = max(1, math.ceil(settings.keep * (1 - share)))
        drop(kept_by_definition({id_: s.result.reply for id_, s in left.items()}, quota, seed))
    return fate | dict.fromkeys(left, "")


def random_samples(draw: random.Random) -> list[Sample]:
    samples = []
    for number in range(draw.randint(1, 8)):
        text = draw.choice(("18", "18", "18", "7", "25"))
        record = answer(number, text, f"{draw.choice('가나다')} {text}")
        ok = draw.choice((text == "18", text == "18", None))
        if draw.random() < 0.2:
            samples.append(
                Sample(Reject(replace(record, answer=None), "generate", "unparsed"), None, draw.choice((False, None)))
            )
        else:
            samples.append(Sample(record, ok, ok if draw.random() < 0.7 else False))
    return samples


def test_all_rules_together_are_those_by_definition_whatever_the_order():
    draw = random.Random(4)
    seen: defaultdict[str, int] = defaultdict(int)
    for _ in range(4 * NUM_INSTANCES):
        most = draw.choice((None, 1, 3))
        settings = Samples(
            n=8,
            vote=(voting := draw.random() < 0.5),
            min_agreement=draw.choice((0.0, 0.5)) if voting else 0.0,
            pass_rate=draw.choice(((0.0, 1.0), (0.25, 0.75), (0.5, 1.0))),
            keep=most,
            keep_by=draw.choice(("chance", "difficulty")) if most else "chance",
        )
        undecided = draw.choice(("keep", "reject"))
        samples, seed = random_samples(draw), draw.randrange(1000)
        found = choose(samples, settings, Verify(kind="math", undecided=undecided), seed)
        expected = chosen_by_definition(samples, settings, undecided, seed)
        assert {id_: reason for id_, (reason, _) in fates(found).items()} == expected, settings
        for reason in expected.values():
            seen[reason] += 1
        draw.shuffle(samples)
        again = choose(samples, settings, Verify(kind="math", undecided=undecided), seed)
        assert (fates(again), metas(again)) == (fates(found), metas(found))
    reasons = "unparsed outvoted no_agreement too_hard too_easy no_pass_rate wrong_answer unverifiable"
    assert all(seen[reason] > 20 for reason in ["", "same_answer_text", "not_kept", *reasons.split()])


def test_without_a_rule_everything_goes_on_even_what_is_wrong():
    samples = [Sample(answer(n, text), text == "18", text == "18") for n, text in enumerate(("18", "7", "18"))]
    outcome = choose(samples, Samples(n=3), MATH, 0)
    assert [record.answer for record in outcome.kept] == ["18", "7", "18"] and not outcome.rejected
