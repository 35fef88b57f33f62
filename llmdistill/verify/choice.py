"""Multiple choice: the letter, the number or the text of an option, in English or Korean."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from llmdistill.config import Verify
from llmdistill.verify.base import Verified, differs, final_answer, shown
from llmdistill.verify.text import normalise

_SERIES = ("ABCDEFGHIJ", "1234567890", "가나다라마바사아자차", "ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊ")
_CIRCLED = str.maketrans(
    {character: f"({index})" for index, character in enumerate("①②③④⑤⑥⑦⑧⑨", start=1)}
    | {chr(ord("Ⓐ") + index): f"({letter})" for index, letter in enumerate("ABCDEFGHIJ")}
    | {chr(ord("㉮") + index): f"({letter})" for index, letter in enumerate("가나다라마바사아자차")}
    | {chr(ord("㉠") + index): f"({letter})" for index, letter in enumerate("ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊ")}
)
_LABEL = "[A-Ja-j]|10|[1-9]|[가나다라마바사아자차]|[ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊ]"
_ALONE = re.compile(
    rf"(?:(?:option|choice|보기|선택지)\s?)?\(?\[?({_LABEL})\]?\)?\s?(?:번|입니다|이다|예요|이에요)*[.!。]?"
)
_LEADING = re.compile(
    rf"(?:(?:option|choice|보기|선택지)\s?)?(?:[(\[]({_LABEL})[)\]]|({_LABEL})(?:\s?[).:]|번)(?![0-9]))", re.IGNORECASE
)
_NAMED = re.compile(
    rf"(?:\b(?:option|choice)\s|보기\s?|선택지\s?)[(\[]?({_LABEL})(?![A-Za-z0-9가-힣])|[(\[]({_LABEL})[)\]]|"
    rf"(?<![0-9A-Za-z.])({_LABEL})번",
    re.IGNORECASE,
)
_NEGATION = re.compile(r"\b(?:not|isn't|neither|nor|cannot|can't|except|wrong|incorrect)\b|아니|아닌|않|틀린|오답")
_OPTION_LINE = re.compile(rf"(?:^|[\n\t ])[(\[]?({_LABEL})[)\].:]\s+?([^\n]+?)(?=\s+[(\[]?(?:{_LABEL})[)\].:]\s|\n|$)")


def verify(answer: str, reference: str, settings: Verify) -> Verified:
    """Whether the answer names the reference's option.

    `reference` is a label ("B", "나", "3번"), a label with its text ("B) Paris"), or the text; `settings.choices`
    holds the texts of all options in order, which lets label and text be matched with each other.
    A letter counts as a label only where it stands alone or is marked as one: "It is a wrong answer" names none.
    """
    choices = [normalise(_marked(text)) for text in settings.choices]
    index, gold_text = _gold(_marked(reference), choices)
    if index is None and not gold_text:
        return Verified(None, "the reference names no option")
    final = final_answer(_marked(answer), short_marker=False).text
    found = _labels(final)
    if len(found) == 1 and index is not None:
        return Verified(True, f"option {shown(reference)}") if found == {index} else differs(final, reference)
    if len(found) > 1:
        return Verified(None, f"names several options: {shown(final)}")
    return _by_text(final, reference, gold_text, choices)


def options_of(prompt: str) -> tuple[str, ...]:
    """Texts of the options that a prompt lists as `A) ...`, `(B) ...`, `① ...`; empty when there is no such list."""
    texts: list[str] = []
    for match in _OPTION_LINE.finditer(_marked(prompt[-20_000:])):
        position = _position(match[1])
        if position == 0:
            texts = [match[2].strip()]
        elif position == len(texts) and texts:
            texts.append(match[2].strip())
    return tuple(texts) if len(texts) > 1 else ()


def _marked(text: str) -> str:
    """The text composed (NFC), circled labels as labels in brackets, emphasis removed."""
    return re.sub(r"[*_`]{1,4}", "", unicodedata.normalize("NFC", text).translate(_CIRCLED)).strip()


def _position(label: str) -> int:
    return next(series.index(label.upper()[0]) for series in _SERIES if label.upper()[0] in series) + 9 * (
        label == "10"
    )


def _gold(reference: str, choices: Sequence[str]) -> tuple[int | None, str]:
    """Position and normalised text of the reference's option, as far as they are known."""
    reference = final_answer(reference, short_marker=False).text
    alone, leading = _ALONE.fullmatch(reference), _LEADING.match(reference)
    if normalise(reference) in choices:
        return choices.index(normalise(reference)), normalise(reference)
    if alone:
        index = _position(alone[1])
        return index, choices[index] if index < len(choices) else ""
    if leading:
        return _position(leading[1] or leading[2]), normalise(reference[leading.end() :])
    return None, normalise(reference)


def _labels(final: str) -> set[int]:
    """Positions of the options that a final answer names by their labels."""
    alone = _ALONE.fullmatch(final.strip(" .,\"'"))
    if alone:
        return {_position(alone[1])}
    leading, negated = _LEADING.match(final), _NEGATION.search(final)
    named = {_position(next(filter(None, match.groups()))) for match in _NAMED.finditer(final)}
    if leading and not named - {_position(leading[1] or leading[2])}:
        return {_position(leading[1] or leading[2])}
    return set() if negated and len(named) == 1 else named


def _by_text(final: str, reference: str, gold_text: str, choices: Sequence[str]) -> Verified:
    """Match the option's text: the whole answer, or the only option that it mentions without denying it."""
    said = normalise(final)
    if gold_text and said == gold_text:
        return Verified(True, f"the text of {shown(reference)}")
    if said in choices:
        return differs(final, reference)
    mentioned = {text for text in {*choices, gold_text} if text and _mentions(said, text)}
    if _NEGATION.search(final.casefold()) or len(mentioned) != 1 or len(said) > 500:
        return Verified(None, f"names no single option: {shown(final)}")
    if not choices:
        return Verified(None, f"mentions the reference among other words: {shown(final)}")
    return Verified(True, f"the text of {shown(reference)}") if mentioned == {gold_text} else differs(final, reference)


def _mentions(said: str, text: str) -> bool:
    """Whether a text occurs as whole words (Korean words may go on with a particle)."""
    return bool(re.search(rf"(?<!\w){re.escape(text)}(?![a-z0-9])", said))
