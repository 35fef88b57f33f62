r"""The forms of a verdict, English and Korean: a score on a scale, or a choice between A and B.

Every expression is matched against one cleaned sentence of bounded length.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

Pairs = list[tuple[str, Any]]

_SCORE_KEYS = ("score", "final_score", "overall_score", "rating", "final_rating", "overall_rating", "점수", "최종_점수")
_CHOICE_KEYS = ("winner", "verdict", "final_verdict", "choice", "preference", "better", "승자", "판정", "선택")

_BULLET = re.compile(r"^(?:(?:[-+•·]|#{1,6}|\d{1,2}\.) )+(?=\S)")
_LEAD = (
    r"(?:(?:so|thus|therefore|hence|overall|in (?:conclusion|summary|short)|finally|to conclude|based on (?:this|that)|"
    r"따라서|그러므로|그래서|결론적으로|종합하면|종합적으로|최종적으로|결국|이에),? ){0,3}(?P<core>)"
)
_NUMBER = r"[+-]?(?:0|[1-9][0-9]{0,5})(?:\.[0-9]{1,6})?"
_UNIT = r"(?: ?(?:points?|pts?|stars?|점))?"
_PLAIN = (
    rf"(?:(?P<top1>{_NUMBER})점 ?(?:만점에서?|만점 ?중에?|만점 기준|중에?) (?P<n1>{_NUMBER})점?|"
    rf"(?P<n2>{_NUMBER})(?P<unit>{_UNIT})"
    rf"(?: ?/ ?(?P<top2>{_NUMBER})| (?:out )?of (?P<top3>{_NUMBER})|"
    rf" ?\((?:out of |/ ?)?(?P<top4>{_NUMBER})(?:점 만점)?\))?"
    rf"{_UNIT})"
)
_TAGGED = re.compile(
    r"\[\[ ?(?P<a>[^\[\]]{1,30}?) ?\]\]|"
    r"<(?P<tag>score|rating|verdict|grade|winner|choice|점수|판정)> ?(?P<b>[^<>]{1,30}?) ?</(?P=tag)>|"
    r"(?:\$|\\\()? ?\\boxed\{ ?(?:\\text\{(?P<c>[^{}]{1,30})\}|(?P<d>[^{}]{1,30}?)) ?\} ?(?:\$|\\\))?",
    re.IGNORECASE,
)
_VALUE = re.compile(_PLAIN, re.IGNORECASE)
_IS = r"(?: ?[:=]|은|는|이|가| is:?| of| [-–—] )?"
_LABEL = re.compile(
    rf"{_LEAD}(?:(?:my|the|a fair|its|제|이 응답의|응답의|답변의|이 답변의) )?"
    r"(?:(?:final|overall|total|revised|corrected) |"
    r"(?:최종|종합|전체|수정|총) ?){0,3}"
    r"(?:(?:score|rating|grade|mark|verdict|judge?ment|\[result\]|(?:평가 ?)?점수|평점|총점|별점|등급|판정)"
    r"(?: (?:for|of) (?:the|this) (?:response|answer))?|(?:overall|final|total)(?= ?:))"
    r"(?: ?[(\[](?:(?P<low>[0-9.]+) ?(?:-|–|—|~|to) ?|out of |/ ?)?(?P<top>[0-9.]+)(?:점 만점)?[)\]])?"
    rf"(?P<is>{_IS}) ?",
    re.IGNORECASE,
)
_GIVING = re.compile(
    rf"{_LEAD}(?:(?:(?:i|we)(?:'d|'ll| would| will)? (?:give|rate|score|assign|grade|award)"
    r"(?: (?:(?:the|this) (?:response|answer|candidate)|it|this))?(?: (?:as|at))?|"
    r"(?:the|this) (?:response|answer) (?:deserves|gets|earns|receives|merits|scores|is (?:rated|scored|worth)))"
    r"(?: an?)?(?: (?:final |overall )?(?:score|rating|grade|mark) of)? |"
    r"(?:저는 |나는 )?(?:(?:이|위|해당|본|제시된) )?(?:응답|답변)(?:에는?|은|의 점수는) )",
    re.IGNORECASE,
)
_GIVEN = (
    r"(?:입니다|이다|임|이에요|예요|"
    r"[을를] ?(?:줍니다|주겠습니다|드립니다|드리겠습니다|부여합니다|부여하겠습니다|매깁니다|매기겠습니다)|"
    r"으?로 ?(?:평가합니다|평가하겠습니다|하겠습니다|판단합니다|정합니다|매깁니다))?"
)
_REMARK = re.compile(
    rf"{_GIVEN}(?: ?\([^()\d]*\)| ?[-–—,:](?! ?(?:or|maybe|perhaps|to|but|또는|혹은|아니)\b)[^\d?]*)?[.!。]?",
    re.IGNORECASE,
)
_ENDING = re.compile(rf"{_GIVEN}[.!。]?")
_ABOUT = re.compile(
    r"\b(?:scores?|ratings?|grade|verdict|rate|mark)\b|점수|평점|총점|별점|등급|판정|최종", re.IGNORECASE
)
_CHANGE = re.compile(
    r"\b(?:rais\w+|lower\w*|chang\w+|revis\w+|correct(?:ed|ion)|adjust\w*|instead|wait|actually)\b|바꾸|바꿔|수정|정정|올리|내리",
    re.IGNORECASE,
)
_NUMBERS = re.compile(r"(?<![0-9.])[0-9]{1,6}(?:\.[0-9]{1,6})?(?![0-9])")
_POINTS = re.compile(rf"(?<![0-9.])({_NUMBER})점(?! ?(?:만점|중|기준))")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sentence says: a value, or why it has none ("parsed" else). `labelled` ones come before plain marks."""

    value: float | str | None
    outcome: str
    labelled: bool = True
    core: str = field(default="", compare=False)
    """The words that make it this verdict, without lead-in and remark."""


def clean(segment: str) -> str:
    """The sentence without Markdown's marks, with single spaces."""
    plain = segment.replace("*", "").replace("__", "").replace("’", "'")
    return _BULLET.sub("", " ".join(plain.split()))


def _tagged(text: str, start: int) -> tuple[str, int] | None:
    match = _TAGGED.match(text, start)
    if match is None:
        return None
    return next(part for part in match.group("a", "b", "c", "d") if part is not None), match.end()


@dataclass(frozen=True, slots=True)
class ScoreForms:
    """Scores from `lowest` to `highest`."""

    lowest: float
    highest: float
    decimals: bool

    def label_only(self, segment: str) -> bool:
        """A label whose value is to come on the next line."""
        match = _LABEL.fullmatch(segment)
        return match is not None and match["is"].strip() in ("", ":", "=")

    def mark(self, segment: str) -> bool:
        """A value and nothing else."""
        value = self._value(segment, 0)
        return value is not None and _ENDING.fullmatch(segment, value[1]) is not None

    def read(self, segment: str) -> Reading | None:
        """The verdict that the sentence is, if it is one."""
        label = _LABEL.match(segment)
        if label:
            value = self._value(segment, label.end())
            if value and _REMARK.fullmatch(segment, value[1]):
                core = segment[label.start("core") : value[1]]
                return replace(self._on_scale(value[0], label["low"], label["top"]), core=core)
            return self._unreadable(segment[label.end() :]) if label["is"].strip() in (":", "=") else None
        giving = _GIVING.match(segment)
        start = giving.end() if giving else 0
        value = self._value(segment, start)
        if value is None or not _ENDING.fullmatch(segment, value[1]):
            return None
        core = segment[giving.start("core") if giving else 0 : value[1]]
        reading = value[0] if giving else self._alone(segment, value[0])
        return reading and replace(reading, core=core)

    def read_bare(self, segment: str) -> Reading | None:
        """The verdict that the sentence is as the whole reply."""
        number = segment.removesuffix(".")
        return self._number(number, None) if re.fullmatch(_NUMBER, number) else None

    def read_object(self, pairs: Pairs) -> Reading | None:
        """The verdict in a JSON object."""
        found = [value for key, value in pairs if key.casefold().replace(" ", "_") in _SCORE_KEYS]
        readings = {self._json_value(value) for value in found}
        if len(readings) > 1:
            return Reading(None, "ambiguous")
        return readings.pop() if readings else None

    def disagrees(self, segment: str, value: float | str) -> bool:
        """A sentence behind the verdict `value` names another one."""
        top = re.escape(f"{self.highest:g}")
        plain = re.sub(rf"(?<=[0-9])(?: ?/ ?| (?:out )?of ){top}(?![0-9])|{top}점 ?(?:만점|중)", "", segment)
        if _ABOUT.search(plain):
            numbers = {float(number) for number in _NUMBERS.findall(plain)}
            if numbers - {value} or _CHANGE.search(plain):
                return True
        marks = {float(number) for number in _POINTS.findall(segment)}
        fractions = re.findall(rf"({_NUMBER}) ?(?:/|out of) ?{self.highest:g}(?![0-9])", segment)
        bare = self.read_bare(segment) or (self.read(segment) if self.mark(segment) else None)
        said = marks | {float(number) for number in fractions} | ({bare.value} if bare else set())
        return bool(said - {value})

    def _alone(self, segment: str, reading: Reading) -> Reading | None:
        """A value without a label: a tag is a verdict, a fraction or points are marks, a number is nothing."""
        if _TAGGED.match(segment):
            return reading
        plain = _VALUE.match(segment)
        if plain is None or not (plain["top1"] or plain["top2"] or plain["top3"] or plain["unit"] == "점"):
            return None
        return Reading(reading.value, reading.outcome, labelled=False)

    def _value(self, text: str, start: int) -> tuple[Reading, int] | None:
        tagged = _tagged(text, start)
        match = _VALUE.fullmatch(tagged[0]) if tagged else _VALUE.match(text, start)
        if tagged and match is None:
            return self._unreadable(tagged[0]), tagged[1]
        if match is None:
            return None
        number = match["n1"] or match["n2"]
        top = match["top1"] or match["top2"] or match["top3"] or match["top4"]
        return self._number(number, top), tagged[1] if tagged else match.end()

    def _number(self, number: str, top: str | None) -> Reading:
        value = float(number)
        if top is not None and float(top) != self.highest:
            return Reading(None, "other_scale")
        if not math.isfinite(value) or not self.lowest <= value <= self.highest:
            return Reading(None, "out_of_range")
        if not self.decimals and value != int(value):
            return Reading(None, "not_whole")
        return Reading(value, "parsed")

    def _on_scale(self, reading: Reading, low: str | None, top: str | None) -> Reading:
        """The reading, when the scale that the judge wrote next to its label is the rubric's."""
        wanted = (f"{self.lowest:g}", f"{self.highest:g}")
        same = (low is None or low == wanted[0]) and (top is None or top == wanted[1])
        return reading if same else Reading(None, "other_scale")

    def _json_value(self, value: Any) -> Reading:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6:
            return self._number(str(value), None)
        match = _VALUE.fullmatch(value.strip()) if isinstance(value, str) and len(value) < 40 else None
        read = self._value(value.strip(), 0) if match else None
        return read[0] if read else Reading(None, "malformed")

    def _unreadable(self, text: str) -> Reading:
        numbers = set(_NUMBERS.findall(text))
        return Reading(None, "ambiguous" if len(numbers) > 1 else "malformed")


_NAME = r"(?:(?:the )?(?:response|answer|assistant|candidate|model|option|응답|답변|후보|선택지) )"
_SIDE = rf"(?:{_NAME}?(?-i:(?P<side>[AB]))|(?:it'?s |it is )?(?:a )?(?P<tie>tie|draw|equal|both|무승부|동점|비김|동등))"
_CHOICE = re.compile(_SIDE, re.IGNORECASE)
_CHOICE_LABEL = re.compile(
    rf"{_LEAD}(?:(?:my|the) )?"
    r"(?:(?:final|overall) |최종 ?){0,2}(?:verdict|winner|choice|decision|preference|judge?ment|"
    r"better (?:response|answer)|판정|승자|선택|결정|더 나은 (?:응답|답변))(?P<is> ?[:=]|은|는| is:?)? ?",
    re.IGNORECASE,
)
_HOW = r"(?:clearly |slightly |much |significantly |marginally |overall ){0,2}"
_BETTER = re.compile(
    rf"{_LEAD}(?:{_NAME}?(?-i:(?P<a>[AB])) (?:(?:is|was) {_HOW}(?:the )?"
    rf"(?:better|stronger|superior|preferred|winner|best)"
    rf"(?: (?:response|answer|one))?(?: than {_NAME}?(?-i:(?P<other>[AB])))?(?: overall)?|wins)|"
    rf"i (?:prefer|choose|pick|select) {_NAME}?(?-i:(?P<b>[AB]))|(?P<tie1>it'?s a (?:tie|draw)|it is a (?:tie|draw)|"
    r"(?:both|the two) (?:responses|answers) are (?:tied|equal|equally good|equally bad))|"
    r"(?:응답 |답변 |후보 )?(?-i:(?P<c>[AB]))(?:가|이) (?:더|훨씬 더|조금 더) "
    r"(?:낫습니다|좋습니다|우수합니다|낫다|좋다|우수하다)|"
    r"(?:응답 |답변 |후보 )?(?-i:(?P<d>[AB]))(?:의 승리입니다|를 선택합니다)|"
    r"(?P<tie2>무승부입니다|동점입니다|비겼습니다|두 (?:응답|답변)은 (?:동등합니다|비슷합니다)))[.!]?",
    re.IGNORECASE,
)
_MENTION = re.compile(r"(?<![A-Za-z])([AB])(?![A-Za-z])|\b(tie|draw)\b|(무승부|동점)")
_SYMBOLS = {"A>B": "A", "A>>B": "A", "B<A": "A", "B<<A": "A", "B>A": "B", "B>>A": "B", "A<B": "B", "A<<B": "B"}
_SYMBOLS |= {"A=B": "tie", "C": "tie"}


@dataclass(frozen=True, slots=True)
class ChoiceForms:
    """A choice between two answers, or a tie."""

    def label_only(self, segment: str) -> bool:
        """A label whose value is to come on the next line."""
        match = _CHOICE_LABEL.fullmatch(segment)
        return match is not None and (match["is"] or "").strip() in ("", ":", "=")

    def mark(self, segment: str) -> bool:
        """A value and nothing else."""
        value = self._value(segment, 0)
        return value is not None and _ENDING.fullmatch(segment, value[1]) is not None

    def read(self, segment: str) -> Reading | None:
        """The verdict that the sentence is, if it is one."""
        if _TAGGED.match(segment):
            value = self._value(segment, 0)
            return replace(value[0], core=segment[: value[1]]) if value and self.mark(segment) else None
        label = _CHOICE_LABEL.match(segment)
        if label:
            value = self._value(segment, label.end())
            if value and _REMARK.fullmatch(segment, value[1]):
                return replace(value[0], core=segment[label.start("core") : value[1]])
            if value and (better := _BETTER.fullmatch(segment, label.end())):
                return self._better(better)
            return Reading(None, "malformed") if (label["is"] or "").strip() in (":", "=") else None
        better = _BETTER.fullmatch(segment)
        return self._better(better) if better else None

    def read_bare(self, segment: str) -> Reading | None:
        """The verdict that the sentence is as the whole reply."""
        value = self._value(segment, 0)
        return value[0] if value and segment[value[1] :] in ("", ".") else None

    def read_object(self, pairs: Pairs) -> Reading | None:
        """The verdict in a JSON object."""
        found = [value for key, value in pairs if key.casefold().replace(" ", "_") in _CHOICE_KEYS]
        readings = {self._side(value) if isinstance(value, str) else Reading(None, "malformed") for value in found}
        if len(readings) > 1:
            return Reading(None, "ambiguous")
        return readings.pop() if readings else None

    def disagrees(self, segment: str, value: float | str) -> bool:
        """A sentence behind the verdict `value` names another one."""
        if not (_CHOICE_LABEL.search(segment) or _BETTER.search(segment) or self.mark(segment)):
            return False
        return bool({(a or "tie") for a, _, _ in _MENTION.findall(segment)} - {value})

    def _value(self, text: str, start: int) -> tuple[Reading, int] | None:
        tagged = _tagged(text, start)
        if tagged:
            return self._side(tagged[0]), tagged[1]
        match = _CHOICE.match(text, start)
        if match is None or re.match(r"[A-Za-z0-9]", text[match.end() :]):
            return None
        return Reading(match["side"] or "tie", "parsed"), match.end()

    def _side(self, text: str) -> Reading:
        symbol = _SYMBOLS.get(text.replace(" ", ""))
        match = _CHOICE.fullmatch(text.strip()) if len(text) < 40 else None
        value = symbol or (match and (match["side"] or "tie"))
        return Reading(value, "parsed") if value else Reading(None, "malformed")

    def _better(self, match: re.Match[str]) -> Reading:
        side = match["a"] or match["b"] or match["c"] or match["d"]
        if side and side == match["other"]:
            return Reading(None, "ambiguous")
        return Reading(side or "tie", "parsed", core=match.string[match.start("core") : match.end()])
