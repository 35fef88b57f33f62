"""Multiple choice: a label counts where it is one, in English and Korean."""

from __future__ import annotations

import pytest

from llmdistill.config import Verify
from llmdistill.verify import verify, verify_in_context
from llmdistill.verify.choice import options_of

PLAIN = Verify(kind="choice")
CITIES = Verify(kind="choice", choices=("Paris", "London", "New York", "Rome"))


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "(B)",
        "B.",
        "**B**",
        "B) London",
        "The answer is (B) London.",
        "Answer: B",
        r"\boxed{B}",
        "option B",
        "Option B is right",
        "London fits, so the answer is (B)",
        "정답은 B입니다",
        "2번",
        "②",
        "나",
        "보기 나",
        "Answer: (B).\nExplanation: (A) is wrong",
    ],
)
def test_the_labels_forms_are_read(answer: str) -> None:
    assert verify(answer, "B", PLAIN).ok is True


@pytest.mark.parametrize("answer", ["A", "(C)", "The answer is A.", "정답: 3번", "가", "①", "E"])
def test_another_label_is_wrong(answer: str) -> None:
    assert verify(answer, "B", PLAIN).ok is False


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("It is a wrong answer", "A"),
        ("A wrong answer.", "A"),
        ("The answer is a dog", "A"),
        ("I think it is good", "I"),
        ("나무입니다", "나"),
        ("The answer is not (A)", "A"),
        ("(A) is wrong, so (B)", "B"),
        ("Both A and B", "A"),
        ("1.5", "1"),
        ("I don't know", "B"),
    ],
)
def test_a_letter_in_prose_is_no_choice(answer: str, reference: str) -> None:
    assert verify(answer, reference, PLAIN).ok is None


@pytest.mark.parametrize(
    ("answer", "reference", "ok"),
    [
        ("London", "B", True),
        ("It is London.", "B", True),
        ("new york", "C", True),
        ("C", "New York", True),
        ("D", "London", False),
        ("It is Paris", "B", False),
        ("not London", "B", None),
        ("London or Paris", "B", None),
    ],
)
def test_labels_and_texts_stand_for_each_other(answer: str, reference: str, ok: bool | None) -> None:
    assert verify(answer, reference, CITIES).ok is ok


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("What?\nA) one thing\nB) another\nC) the third", ("one thing", "another", "the third")),
        ("What? (A) one (B) two", ("one", "two")),
        ("무엇?\n① 서울 ② 부산 ③ 대구", ("서울", "부산", "대구")),
        ("A. Smith went home at 1. Then he slept.", ()),
    ],
)
def test_options_are_read_from_the_prompt(prompt: str, options: tuple[str, ...]) -> None:
    assert options_of(prompt) == options


def test_the_prompts_options_decide_a_text() -> None:
    prompt = "Which?\nA. a cat\nB. a dog"
    assert verify_in_context("a dog", "B", prompt, PLAIN).ok is True
    assert verify_in_context("a cat", "B", prompt, PLAIN).ok is False
