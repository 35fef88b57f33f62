"""Equal settings, equal digest; and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmdistill.run.digest import differences, digest_of, flatten

VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
PARTS = st.dictionaries(st.text(min_size=1), st.one_of(VALUES, st.lists(VALUES, max_size=3)), max_size=6)


@given(PARTS)
def test_the_order_of_keys_does_not_matter(parts: dict) -> None:
    assert digest_of(dict(reversed(parts.items()))) == digest_of(parts)


@given(PARTS, st.text(min_size=1), VALUES)
def test_a_digest_differs_exactly_when_a_key_does(parts: dict, key: str, value: object) -> None:
    other = {**parts, key: value}
    changed = differences(parts, other)
    if digest_of(parts) != digest_of(other) and parts.get(key) != value:
        assert len(changed) == 1 and changed[0].startswith(f"{key}: ")


def test_a_missing_key_is_not_a_none() -> None:
    assert digest_of({"a": None}) != digest_of({})
    assert differences({}, {"a": None}) == ["a: (absent) -> None"]


def test_the_difference_names_the_key_and_both_values() -> None:
    assert differences({"a.b": 1, "c": 2}, {"a.b": 3, "c": 2}) == ["a.b: 1 -> 3"]


def test_long_values_are_shortened() -> None:
    (line,) = differences({"sha": "a" * 64}, {"sha": "b" * 64})
    assert line == "sha: aaaaaaaaaaaa... -> bbbbbbbbbbbb..."


def test_nested_settings_become_dotted_keys() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": (1, 2)}, "x.") == {"x.a.b.c": 1, "x.d": [1, 2]}
