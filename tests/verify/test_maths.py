"""The maths verifier reads what people and models write, and says None where it cannot know."""

from __future__ import annotations

import threading
import time

import pytest

from llmdistill.config import Verify
from llmdistill.verify import verify
from llmdistill.verify.worker import end_worker

MATH = Verify(kind="math", timeout=20)

RIGHT = [
    ("42", "42"),
    ("$1,234.50", "1234.5"),
    ("1.234,56", "1234.56"),
    ("1,00,000", "100000"),
    ("3.5 million", "3500000"),
    ("$5k", "5000"),
    ("-$5", "-5"),
    ("−5", "-5"),
    ("1e3", "1000"),
    ("1/2", "0.5"),
    ("1 3/4", "1.75"),
    ("1½ cups", "3/2"),
    (r"\frac{3}{4}", "0.75"),
    (r"$\boxed{\frac{1}{2}}$", "1/2"),
    ("50%", "50"),
    ("50%", "0.5"),
    ("0.5", "50%"),
    (r"18\%", "18"),
    ("18 dollars/day", "18"),
    ("500 m", "0.5 km"),
    ("7200 cents", "$72"),
    ("1.5 hours", "90 minutes"),
    ("42개", "42"),
    ("42명입니다", "42"),
    ("**42**개", "42"),
    ("3만 5천", "35000"),
    ("3만5천원입니다", "35000"),
    ("정답: 1억 2,000만 원", "120000000"),
    ("삼만 오천 원", "35000"),
    ("마흔두 개입니다", "42"),
    ("열두 시간", "12"),
    ("답은 42입니다.", "42"),
    ("twenty-five", "25"),
    ("one hundred and five dollars", "105"),
    ("She has 48+24 = 72 clips", "48/2 = 24 in May\n#### 72"),
    ("48 in April, 24 in May.\nThe answer is 72.", "#### 72"),
    ("48 - 30 = <<48-30=18>>18\nA: 18", "A: 18"),
    ("First I thought Answer: 3\nAnswer: **18** dollars", "18"),
    ("Answer:\n42", "42"),
    ("3:30", "3:30"),
]
WRONG = [
    ("41", "42"),
    ("-5", "5"),
    ("0.5%", "50%"),
    ("5 km", "5 miles"),
    ("5 km", "5 hours"),
    ("0.333", "1/3"),
    ("-1.8 billion", "2"),
    ("7/14", "34"),
    ("42만", "42"),
    ("70 in April and 5 in May", "72"),
    ("The answer is 18. Or 42?\nAnswer: 18", "42"),
    ("#### 42\n#### 18", "42"),
]
UNDECIDED = [
    ("72 clips in April and 5 in May", "72"),
    ("The answer is not 5", "5"),
    ("42는 아닙니다", "42"),
    ("I don't know.", "5"),
    ("네, 이것은 일이 많습니다", "1"),
    ("10+John's age", "50"),
    ("2 hours and 30 minutes", "2.5 hours"),
    ("3:30 PM", "4"),
    ("6/0", "6"),
    ("$4 million", "4"),
    ("$2k a month", "2"),
    ("$0.25 a can", "25"),
    ("Paris", "London"),
]
EXPRESSIONS = [
    ("x*2", "2x", True),
    ("2x", "2", False),
    ("2^{10}", "1024", True),
    ("2**10", "1024", True),
    ("9*9", "81", True),
    (r"$\frac{\sqrt{2}}{2}$", r"\frac{1}{\sqrt{2}}", True),
    (r"x \in [1,2]", "[1,2]", True),
    (r"\sqrt{16}", "5", False),
]


@pytest.mark.parametrize(("answer", "reference"), RIGHT)
def test_equal_values_are_right(answer: str, reference: str) -> None:
    assert verify(answer, reference, MATH).ok is True


@pytest.mark.parametrize(("answer", "reference"), WRONG)
def test_other_values_are_wrong(answer: str, reference: str) -> None:
    assert verify(answer, reference, MATH).ok is False


@pytest.mark.parametrize(("answer", "reference"), UNDECIDED)
def test_what_cannot_be_known_is_not_decided(answer: str, reference: str) -> None:
    assert verify(answer, reference, MATH).ok is None


@pytest.mark.parametrize(("answer", "reference", "ok"), EXPRESSIONS)
def test_expressions_are_compared_by_value(answer: str, reference: str, ok: bool) -> None:
    assert verify(answer, reference, MATH).ok is ok


@pytest.mark.parametrize("answer", ["9**9**9", "9^{9^{9^9}}", "10**10**10**10", "((((" * 200 + "1"])
def test_a_formula_without_end_is_not_right_and_does_not_last(answer: str) -> None:
    started = time.monotonic()
    assert verify(answer, "9", Verify(kind="math", timeout=3)).ok is not True
    assert time.monotonic() - started < 90
    assert verify("2^{3}", "8", MATH).ok is True  # a fresh process serves the next one


def test_a_formula_is_verified_in_any_thread() -> None:
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(verify("3^{2}", "9", MATH).ok))
    thread.start()
    thread.join(90)
    assert seen == [True]


def test_the_process_ends_when_told_and_starts_again() -> None:
    end_worker()
    assert verify("4^{2}", "16", MATH).ok is True


HOSTILE = [
    "9" * 190_000,
    "1," * 90_000,
    "=5" * 90_000,
    "1 1/" * 45_000,
    "<<" * 90_000,
    "{" * 190_000,
    "\\boxed{" * 25_000,
    "\\frac{1" * 20_000,
    "the answer is " * 14_000,
    "Answer:\n" * 24_000,
    "**" * 90_000,
    "_a_" * 60_000,
    "$" * 190_000,
    "열" * 190_000,
    "3만" * 60_000,
    "정답" * 90_000,
    " " * 190_000 + "x",
    "x" * 1_000_000,
    "\x00\ud800",
    "\U0001f4a9" * 1000,
]


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_end_soon_and_are_never_right(answer: str) -> None:
    started = time.monotonic()
    assert verify(answer, "6", Verify(kind="math", timeout=3)).ok is not True
    assert verify("6", answer, Verify(kind="math", timeout=3)).ok is not True
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("answer", ["6\ud800", "\x006", "6\u200b"])
def test_broken_characters_do_not_hide_the_number(answer: str) -> None:
    assert verify(answer, "6", MATH).ok is True
