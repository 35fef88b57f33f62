"""Number words, English and Korean: "twenty-five", "삼만 오천 원", "마흔두 개"."""

from __future__ import annotations

import re

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ENGLISH = {word: value for value, word in enumerate(_SMALL)} | {
    word: 10 * value for value, word in enumerate(_TENS, start=2)
}
_ENGLISH_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_WORD = "|".join(sorted([*_ENGLISH, *_ENGLISH_SCALES], key=len, reverse=True))
_ENGLISH_NUMBER = re.compile(rf"\b(?:{_WORD})(?:(?:[ -]|,? and |, )(?:{_WORD}))*\b(?! of\b)", re.IGNORECASE)

_SINO = {"영": 0, "공": 0, "일": 1, "이": 2, "삼": 3, "사": 4, "오": 5, "육": 6, "칠": 7, "팔": 8, "구": 9}
_SINO_SCALES = {"십": 10, "백": 100, "천": 1000, "만": 10**4, "억": 10**8}
_NATIVE_TENS = dict(
    zip("열 스물 스무 서른 마흔 쉰 예순 일흔 여든 아흔".split(), (1, 2, 2, 3, 4, 5, 6, 7, 8, 9), strict=True)
)
_NATIVE_ONES = dict(
    zip(
        "하나 한 둘 두 셋 세 넷 네 다섯 여섯 일곱 여덟 아홉".split(),
        (1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9),
        strict=True,
    )
)
_COUNTERS = (
    "개월|개|명|마리|권|살|세|원|달러|시간|분|초|일|주|번|장|대|병|잔|송이|켤레|그루|자루|사람|가지|조각|상자|봉지|"
    "킬로미터|미터|리터|그램|센티미터|퍼센트|프로|배|층|쪽|인분|그릇|년|달"
)
_TAIL = "(?:입니다|이다|이에요|예요|정도|으로|이|가|을|를|은|는|로|씩|다)?"
_KOREAN_NUMBER = re.compile(
    rf"(?<![가-힣])(?P<sino>[영공일이삼사오육칠팔구십백천만억]*(?: ?[일이삼사오육칠팔구십백천]+[만천백십])*)"
    rf"(?P<tens>{'|'.join(_NATIVE_TENS)})?(?P<ones>{'|'.join(_NATIVE_ONES)})?"
    rf"(?: ?(?P<counter>{_COUNTERS}))?{_TAIL}(?![가-힣])"
)


def number_words(text: str) -> list[tuple[int, int, int]]:
    """(value, start, end) of every number written in words."""
    english = [(_english(match[0]), match.start(), match.end()) for match in _ENGLISH_NUMBER.finditer(text)]
    return english + [found for match in _KOREAN_NUMBER.finditer(text) if (found := _korean(match)) is not None]


def _english(text: str) -> int:
    total = section = 0
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in _ENGLISH:
            section += _ENGLISH[word]
        elif word == "hundred":
            section = max(section, 1) * 100
        elif word in _ENGLISH_SCALES:
            total, section = total + max(section, 1) * _ENGLISH_SCALES[word], 0
    return total + section


def _korean(match: re.Match[str]) -> tuple[int, int, int] | None:
    sino, tens, ones = match["sino"], match["tens"], match["ones"]
    if not (sino or tens or ones) or not (match["counter"] or _is_number_alone(sino, tens, ones)):
        return None
    value = _sino(sino) + 10 * _NATIVE_TENS.get(tens or "", 0) + _NATIVE_ONES.get(ones or "", 0)
    end = match.end("ones") if ones else match.end("tens") if tens else match.end("sino")
    return value, match.start(), end


def _is_number_alone(sino: str, tens: str | None, ones: str | None) -> bool:
    """Short numerals are other words too (이 "this", 네 "yes"): those need a counter."""
    if tens and ones:
        return True
    if sino and not (tens or ones):
        return len(sino) >= 3 and any(character in _SINO_SCALES for character in sino)
    return bool(ones and not sino and len(ones) == 2)


def _sino(text: str) -> int:
    if text and not any(character in _SINO_SCALES for character in text):
        return int("".join(str(_SINO.get(character, "")) for character in text)) if text.strip() else 0
    total = section = digit = 0
    for character in text:
        scale = _SINO_SCALES.get(character, 0)
        if not scale:
            digit = _SINO.get(character, digit)
        elif scale < 10**4:
            section, digit = section + (digit or 1) * scale, 0
        else:
            total, section, digit = total + (section + digit or 1) * scale, 0, 0
    return total + section + digit
