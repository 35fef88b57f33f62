"""Units of measure: spelling, dimension, and how many base units one of them is.

Words that are not listed ("42 clips", "42개") name what is counted; they do not decide anything.
Neither do a pound (money or mass), a ton (metric or not), a month and a year.
"""

from __future__ import annotations

import re
from fractions import Fraction

Unit = tuple[str, Fraction]

_TABLE: dict[str, dict[str, str]] = {
    "length": {
        "mm millimeter millimeters millimetre millimetres 밀리미터": "1/1000",
        "cm centimeter centimeters centimetre centimetres 센티미터 센티": "1/100",
        "m meter meters metre metres 미터": "1",
        "km kilometer kilometers kilometre kilometres 킬로미터": "1000",
        "inch inches": "254/10000",
        "ft foot feet": "3048/10000",
        "yd yard yards": "9144/10000",
        "mi mile miles 마일": "1609344/1000",
    },
    "mass": {
        "mg milligram milligrams": "1/1000",
        "g gram grams 그램": "1",
        "kg kilogram kilograms kilo kilos 킬로그램": "1000",
        "oz ounce ounces": "28349523125/1000000000",
        "lb lbs": "45359237/100000",
        "tonne tonnes": "1000000",
    },
    "time": {
        "second seconds sec secs 초": "1",
        "minute minutes min mins 분": "60",
        "hour hours hr hrs 시간": "3600",
        "day days 일": "86400",
        "week weeks 주": "604800",
    },
    "volume": {
        "ml milliliter milliliters millilitre millilitres 밀리리터": "1/1000",
        "l liter liters litre litres 리터": "1",
    },
    "dollars": {"$ us$ usd dollar dollars 달러": "1", "cent cents ¢ 센트": "1/100"},
    "euros": {"€ eur euro euros 유로": "1"},
    "pounds sterling": {"£ gbp": "1"},
    "won": {"₩ krw won 원": "1"},
    "yen": {"¥ jpy yen 엔": "1"},
}
_UNITS: dict[str, Unit] = {
    name: (dimension, Fraction(factor))
    for dimension, rows in _TABLE.items()
    for names, factor in rows.items()
    for name in names.split()
}
CURRENCY = r"(?:US\$|[$€£₩¥]|USD|EUR|GBP|KRW|JPY)"
_WORD = re.compile(r"[A-Za-z]{1,12}|[¢€₩]|[가-힣]{1,8}")
_PARTICLES = re.compile(
    r"(?:입니다|이에요|예요|이다|이며|이고|정도|쯤|씩|어치|짜리|으로|에서|까지|부터|동안|이|가|을|를|은|는|로|에|의|만|다)+$"
)


def unit_of(name: str) -> Unit | None:
    """The unit that a word or sign names, or None; Korean words may carry particles."""
    name = name.lower()
    return _UNITS.get(name) or _UNITS.get(_PARTICLES.sub("", name))


def unit_after(text: str) -> Unit | None:
    """The unit that a text begins with, as in " km away" or "달러입니다"."""
    found = _WORD.match(text.lstrip(" \t~")[:16])
    return unit_of(found[0]) if found else None
