"""Reading quantities from prose: digits with separators, fractions, percent, Korean and English number words.

Values are exact fractions. What this does not read (powers, roots, variables) is left to math-verify.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from llmdistill.verify.units import CURRENCY, Unit, unit_after, unit_of
from llmdistill.verify.words import number_words

MAX_QUANTITIES = 2000
_MAX_DIGITS = 1000
_DIGITS = (
    r"(?:[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{1,2}(?![0-9])"
    r"|[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}(?![0-9])(?:\.[0-9]+)?"
    r"|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)
_KOREAN_SCALE = r"(?:[십백천만억]|조(?!각|금))"
_QUANTITY = re.compile(
    rf"(?<![A-Za-z0-9_])(?<![0-9][.:])(?P<sign>[-+](?=[0-9.$€£₩¥]))?(?P<currency>{CURRENCY}[ ]?)?(?P<inner_sign>-)?"
    rf"(?:(?P<korean>{_DIGITS}{_KOREAN_SCALE}+(?:[ ]?{_DIGITS}{_KOREAN_SCALE}+)*(?:[ ]?[0-9]+(?![0-9.,]))?)"
    rf"|(?P<whole>[0-9]{{1,9}})[ ](?P<over>[0-9]{{1,9}})/(?P<under>[0-9]{{1,9}})(?![0-9])"
    rf"|(?P<number>{_DIGITS})(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}})(?![0-9A-Za-z]))?"
    rf"(?:[ ]?/[ ]?(?P<denominator>[0-9]{{1,30}})(?![0-9.]))?)"
    rf"(?::(?=[0-9]))?"
    rf"(?:[ ]?(?P<scale>hundred|thousand|million|billion|trillion|k(?![a-z]))\b)?"
    rf"[ ]?(?P<percent>%p?|percent\b|per cent\b|퍼센트|프로(?!그램))?",
    re.IGNORECASE,
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "k": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_KOREAN = {"십": 10, "백": 100, "천": 1000, "만": 10**4, "억": 10**8, "조": 10**12}
_SUPERSCRIPTS = str.maketrans({c: f"^{d}" for c, d in zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)})
_VULGAR = re.compile("(?<=[0-9])(?=[¼½¾⅐-⅞])")
_CALCULATOR = re.compile(r"<<[^<>\n]{0,300}>>")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s?\{?([0-9]{1,30})\}?\{([0-9]{1,30})\}")
_EMPHASIS = re.compile(r"(?<![0-9A-Za-z_)*])(\*\*|[*_])([^*_\n]{1,300})\1(?![0-9A-Za-z_(*])")
_LATEX_NOISE = re.compile(r"\\(?:text|mathrm|mbox)\s?\{([^{}]{0,40})\}")
_OPERATOR = re.compile(
    r"[+*^\\=<>√π×÷±≤≥≈|{}]|/(?![A-Za-z가-힣])|(?<=[0-9)])\s?-\s?(?=[0-9(])|(?<=[0-9])[a-zπ](?![A-Za-z])"
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number of a text. `value` is None when it cannot be read; a percent's value is not divided.

    `bare` is the value without "thousand", "million", "k".
    """

    value: Fraction | None
    bare: Fraction | None
    percent: bool
    unit: Unit | None
    start: int
    end: int


def plain(text: str) -> str:
    """The text with compatibility characters, calculator notes and simple LaTeX written out plainly."""
    text = _VULGAR.sub(" ", _CALCULATOR.sub("", text)).translate(_SUPERSCRIPTS)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/").replace("−", "-").replace("–", "-")
    text = _LATEX_FRACTION.sub(r" \1/\2 ", _LATEX_NOISE.sub(r" \1 ", text))
    for latex, sign in (("\\$", "$"), ("\\%", "%"), ("\\,", ""), ("\\!", ""), ("{,}", ","), ("\\(", ""), ("\\)", "")):
        text = text.replace(latex, sign)
    return re.sub(r"[ \t`]+", " ", _EMPHASIS.sub(r" \2 ", text)).strip()


def quantities(text: str) -> list[Quantity]:
    """The quantities of a `plain` text in order, one more than `MAX_QUANTITIES` of them at most.

    Words are read only where there are no digits.
    """
    matches = itertools.islice(_QUANTITY.finditer(text), MAX_QUANTITIES + 1)
    found = [_quantity(match, text) for match in matches]
    if found or any(character in "0123456789" for character in text):
        return found
    return [
        Quantity(
            Fraction(value), Fraction(value), _percent_after(text, end), unit_after(text[end : end + 20]), start, end
        )
        for value, start, end in number_words(text)
    ]


def is_expression(text: str, found: list[Quantity]) -> bool:
    """Whether a `plain` text holds more mathematics than the quantities found in it."""
    if any(text[q.end : q.end + 1] == "!" and text[q.end + 1 :].strip() for q in found):
        return True
    rest = list(text)
    for quantity in found:
        unit_end = quantity.end + (1 if quantity.unit and _letter_unit(text, quantity.end) else 0)
        rest[quantity.start : unit_end] = "0" * (unit_end - quantity.start)
    return bool(_OPERATOR.search("".join(rest).strip("$")))


def _letter_unit(text: str, place: int) -> bool:
    return text[place : place + 1].isalpha() and not text[place + 1 : place + 2].isalpha()


def _quantity(match: re.Match[str], text: str) -> Quantity:
    bare = _value(match)
    if bare is not None and "-" in (match["sign"] or match["inner_sign"] or ""):
        bare = -bare
    value = None if bare is None else bare * _SCALES.get((match["scale"] or "").lower(), 1)
    unit = unit_of(match["currency"].strip()) if match["currency"] else unit_after(text[match.end() : match.end() + 20])
    return Quantity(value, bare, bool(match["percent"]), unit, match.start(), match.end())


def _value(match: re.Match[str]) -> Fraction | None:
    """The number before its scale and sign."""
    if len(match[0]) > _MAX_DIGITS or match[0].rstrip().endswith(":"):
        return None
    if match["korean"]:
        value: Fraction | None = _korean(match["korean"])
    elif match["whole"]:
        value = _ratio(match["over"], match["under"])
        value = None if value is None else value + int(match["whole"])
    else:
        value = _decimal(match["number"]) * Fraction(10) ** int(match["exponent"] or 0)
        if match["denominator"]:
            under = int(match["denominator"])
            value = value / under if under else None
    return value


def _ratio(over: str, under: str) -> Fraction | None:
    return Fraction(int(over), int(under)) if int(under) else None


def _decimal(digits: str) -> Fraction:
    """A number with separators: `1,234.5`, `1.234,50` (both present: the last is the decimal one), `1,00,000`."""
    if re.search(r"\..*,", digits):
        digits = digits.replace(".", "").replace(",", ".")
    return Fraction(digits.replace(",", ""))


def _korean(text: str) -> Fraction:
    """Digits with Korean scales: 3만 5천 is 35,000."""
    total = section = Fraction(0)
    number: Fraction | None = None
    for part in re.findall(rf"{_DIGITS}|[십백천만억조]", text):
        scale = _KOREAN.get(part)
        if scale is None:
            number = _decimal(part)
        elif scale < 10**4:
            section, number = section + (Fraction(1) if number is None else number) * scale, None
        else:
            section += number or 0
            total, section, number = total + (section or 1) * scale, Fraction(0), None
    return total + section + (number or 0)


def _percent_after(text: str, end: int) -> bool:
    return bool(re.match(r"\s?(?:%|percent\b|per cent\b|퍼센트|프로)", text[end : end + 12], re.IGNORECASE))
