"""Text, regular expressions and JSON: what is equal, what matches, and that nothing takes for ever."""

from __future__ import annotations

import json
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmdistill.config import Verify
from llmdistill.verify import VERIFIERS, verify

EXACT, TEXT = Verify(kind="exact"), Verify(kind="text")
REGEX, JSON = Verify(kind="regex", timeout=1), Verify(kind="json", timeout=2)
SCHEMA = '{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}'


def test_exact_looks_past_unicode_composition_only() -> None:
    assert verify(unicodedata.normalize("NFD", "한글 café"), "한글 café", EXACT).ok is True
    assert verify("Paris", "paris", EXACT).ok is False
    assert verify("Paris.", "Paris", EXACT).ok is False


@pytest.mark.parametrize(
    ("answer", "reference", "ok"),
    [
        ("Hello, World!", "hello world", True),
        ("The answer is Paris.", "paris", True),
        (unicodedata.normalize("NFD", "서울"), "서울", True),
        ("STRASSE", "straße", True),
        ("서울은", "서울", None),
        ("서울", "부산", False),
        ("-5", "5", False),
        ("3.5", "35", False),
        ("C#", "C", False),
        ("x", "!!!", None),
    ],
)
def test_text_looks_past_case_and_punctuation_but_cuts_no_particle(answer: str, reference: str, ok: bool) -> None:
    assert verify(answer, reference, TEXT).ok is ok


@pytest.mark.parametrize(
    ("answer", "pattern", "ok"),
    [("abc", "^a.c$", True), ("abd", "^a.c$", False), ("x", "(", None), ("서울 42", r"\p{Hangul}+ \d+", True)],
)
def test_a_pattern_is_searched(answer: str, pattern: str, ok: bool | None) -> None:
    assert verify(answer, pattern, REGEX).ok is ok


@pytest.mark.parametrize("pattern", ["^(a+)+$", "(a|aa)+$", "(.*)*b$", "(a*)*c", "((a{1,900}){1,900}){1,900}c"])
def test_a_pattern_that_backtracks_for_ever_is_ended(pattern: str) -> None:
    started = time.monotonic()
    assert verify("a" * 50_000 + "!", pattern, REGEX).ok is not True
    assert time.monotonic() - started < 30


def test_one_pattern_serves_all_records() -> None:
    rule = Verify(kind="regex", pattern="^(yes|no)$")
    assert verify("yes", "", rule).ok is True
    assert verify("maybe", "", rule).ok is False


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        ('{"a": 1}', True),
        ('```json\n{"a": 1}\n```', True),
        ('{"a": "x"}', False),
        ('Here it is: {"a": 1}', False),
        ('{"a": 1, "a": 2}', False),
        ('{"a": NaN}', False),
        ('{"a": 1', False),
        ("[" * 100_000, None),
        ('{"a": ' + "9" * 5000 + "}", None),
    ],
)
def test_json_is_strict(answer: str, ok: bool | None) -> None:
    assert verify(answer, SCHEMA, JSON).ok is ok


@pytest.mark.parametrize(
    "schema",
    [
        '{"$ref": "http://127.0.0.1:1/x"}',
        '{"$ref": "#"}',
        '{"type": "nonsense"}',
        '{"pattern": "("}',
        "[1]",
        "not a schema",
        json.dumps(
            {f"d{i}": {"allOf": [{"$ref": f"#/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {}, "$ref": "#/d0"}
        ),
    ],
)
def test_a_schema_that_cannot_be_applied_decides_nothing(schema: str) -> None:
    started = time.monotonic()
    assert verify('"x"', schema, JSON).ok is None
    assert time.monotonic() - started < 30


def test_unique_items_of_a_long_list_are_counted_in_time() -> None:
    started = time.monotonic()
    assert verify(json.dumps([{"a": i} for i in range(12_000)]), '{"uniqueItems": true}', JSON).ok is True
    assert verify("[1, 1.0]", '{"uniqueItems": true}', JSON).ok is False
    assert verify('[1, true, "1"]', '{"uniqueItems": true}', JSON).ok is True
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("kind", sorted(VERIFIERS))
def test_without_an_answer_or_a_reference_nothing_is_decided(kind: str) -> None:
    assert verify(" \n", "5", Verify(kind=kind)).ok is None
    assert verify("5", "", Verify(kind=kind)).ok is None
    assert verify("5" * 1_000_000, "5", Verify(kind=kind)).ok is None


@pytest.mark.parametrize("kind", ["math", "choice", "exact", "text", "json", "regex"])
@given(answer=st.text(st.characters(), max_size=60), reference=st.text(st.characters(), max_size=30))
@settings(max_examples=150, deadline=None)
def test_no_text_makes_a_verifier_raise(kind: str, answer: str, reference: str) -> None:
    verified = verify(answer, reference, Verify(kind=kind, timeout=2))
    assert verified.ok in (True, False, None)
    verified.detail.encode("utf-8")


def test_a_rule_of_another_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="pattern is for kind: regex"):
        Verify(kind="math", pattern="x")
