"""Numbers and mathematical expressions.

Plain quantities are compared here, exactly. Expressions go to math-verify in a process of its own
(see `worker`), because a power or a nested formula can take any amount of time and memory.
"""

from __future__ import annotations

import re
from fractions import Fraction

from llmdistill.config import Verify
from llmdistill.verify.base import Final, Verified, differs, final_answer, shown
from llmdistill.verify.quantity import MAX_QUANTITIES, Quantity, is_expression, plain, quantities
from llmdistill.verify.worker import compare_expressions

_WITH_CENTS = ("dollars", "euros")
_MAX_STATED = 1000
"""Characters of a final answer; a longer text is reasoning."""
_BOLD = re.compile(r"(?<![0-9A-Za-z)*])\*\*([^*\n]{1,200})\*\*(?![0-9A-Za-z(*])")
_NEGATION = re.compile(
    r"\b(?:not|isn't|never|cannot be|can't be)\s+(?:equal to\s+)?[-+$€£₩]{0,2}[0-9]|"
    r"[0-9][^\s0-9]{0,6}\s?[^\s0-9]{0,6}(?<=[이가은는])\s?(?:아니|아닙)",
    re.IGNORECASE,
)
_LATEX_COMMAND = re.compile(r"\\[a-zA-Z]{1,20}")
_WORD = re.compile(r"[A-Za-z]{3,}|[가-힣]")


def verify(answer: str, reference: str, settings: Verify) -> Verified:
    """Whether the answer's final value is the reference's.

    Read are: separators (1,234), fractions, percent (50 % is 50 and 0.5 where only one side has the sign),
    units of measure (converted), currency, English and Korean number words, GSM8K's `#### 42`. A unit on one side
    only is ignored, unless it could make up for the difference ("$4 million" for 4, "$0.25" for 25): then nothing is
    decided. Where a text states several numbers and marks none as final, nothing is decided,
    unless none of them is the reference.
    """
    gold, final = final_answer(reference), final_answer(answer)
    if final.text and plain(final.text) == plain(gold.text):
        return _equal_to(gold)
    expected, found = _stated(gold), _stated(final)
    if isinstance(expected, str):
        return _by_expression(final, gold, settings)
    if _NEGATION.search(final.text[-_MAX_STATED:]):
        return Verified(None, f"it says what the answer is not: {shown(final.text)}")
    if isinstance(found, Quantity):
        ok = _equal(found, expected, settings.tolerance)
        if final.marked or ok or "\n" not in final.text:
            return _verdict(ok, final, gold)
    elif _is_mathematical(final.text):
        return _by_expression(final, gold, settings)
    return _among_several(final, expected, settings)


def _stated(final: Final) -> Quantity | str:
    """The one quantity that a text states, else its `plain` text."""
    lines = final.text.split("\n")
    text = final.text if len(lines) == 1 else next((line for line in reversed(lines) if line.strip()), "")
    if len(text) > _MAX_STATED:
        return text
    bold = _BOLD.findall(text)
    whole = plain(text)
    parts = [whole, whole.rsplit("=", 1)[-1], *(plain(part) for part in bold[-1:]), re.split(r"(?<=[.!?]) ", whole)[0]]
    for part in parts:
        found = quantities(part)
        if found and len({(q.value, q.percent) for q in found}) == 1 and not is_expression(part, found):
            return found[0]
    return whole


def _equal(found: Quantity, expected: Quantity, tolerance: float) -> bool | None:
    """Whether two quantities are the same; None where one of them could not be read."""
    if found.value is None or expected.value is None:
        return None
    value, gold = found.value, expected.value
    if found.unit and expected.unit and found.unit != expected.unit:
        if found.unit[0] != expected.unit[0]:
            return False
        value, gold = value * found.unit[1], gold * expected.unit[1]
    if found.percent != expected.percent:
        shares = (value / 100, gold) if found.percent else (value, gold / 100)
        return _close(value, gold, tolerance) or _close(*shares, tolerance)
    if _close(value, gold, tolerance):
        return True
    return None if _in_another_unit(found, expected, tolerance) else False


def _in_another_unit(found: Quantity, expected: Quantity, tolerance: float) -> bool:
    """Whether the two would be equal had the question asked for millions, or for cents: "$4 million" and 4."""
    assert found.bare is not None and expected.bare is not None
    if found.unit and expected.unit:
        return False
    cents = 100 if found.unit and found.unit[0] in _WITH_CENTS else 1
    return any(_close(found.bare * factor, expected.bare, tolerance) for factor in (1, cents))


def _close(value: Fraction, gold: Fraction, tolerance: float) -> bool:
    return value == gold or abs(value - gold) <= Fraction(tolerance) * max(abs(value), abs(gold))


def _is_mathematical(text: str) -> bool:
    """Whether a text is one formula, without words."""
    return len(text) <= _MAX_STATED and "\n" not in text and not _WORD.search(_LATEX_COMMAND.sub("", text))


def _equal_to(gold: Final) -> Verified:
    return Verified(True, f"equal to {shown(gold.text)}")


def _verdict(ok: bool | None, final: Final, gold: Final) -> Verified:
    if ok is None:
        return Verified(None, f"cannot be read, or is in another unit: {shown(final.text)}")
    return _equal_to(gold) if ok else differs(final.text, gold.text)


def _among_several(final: Final, expected: Quantity, settings: Verify) -> Verified:
    """A text with no single number stated: wrong if none of its numbers is the expected one, else undecided."""
    text = plain(final.text)
    found = quantities(text)
    if len(found) > MAX_QUANTITIES:
        return Verified(None, f"more than {MAX_QUANTITIES:,} numbers")
    if not found:
        return Verified(None, f"no number in {shown(final.text)}")
    if any(_equal(quantity, expected, settings.tolerance) is not False for quantity in found):
        return Verified(None, f"several numbers, none of them marked as the answer: {shown(final.text[-60:])}")
    if "\n" not in text and (_is_compound(found) or (is_expression(text, found) and "=" not in text)):
        return Verified(None, f"a value put together of several: {shown(final.text)}")
    return Verified(False, "none of its numbers is the reference")


def _is_compound(found: list[Quantity]) -> bool:
    """Several units of one dimension, as in "2 hours and 30 minutes"."""
    units = {quantity.unit for quantity in found if quantity.unit}
    return len(units) > len({dimension for dimension, _ in units})


def _by_expression(final: Final, gold: Final, settings: Verify) -> Verified:
    if not gold.text or not final.text:
        return Verified(None, "nothing to compare")
    if max(len(final.text), len(gold.text)) > _MAX_STATED:
        return Verified(None, f"longer than an expression ({_MAX_STATED:,} characters)")
    ok, detail = compare_expressions(_formula(final.text), _formula(gold.text), settings.timeout)
    if ok is None:
        return Verified(None, detail)
    return _equal_to(gold) if ok else differs(final.text, gold.text)


def _formula(text: str) -> str:
    """A text as math-verify reads it: a formula without dollar signs gets them."""
    return f"${text.replace('**', '^')}$" if "$" not in text and _is_mathematical(text) else text
