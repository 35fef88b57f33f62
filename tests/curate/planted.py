"""Planted copies and planted look-alikes of real questions, with labels that are true by how they are made.

A copy asks for the same answer in the same words: a slip of the finger, another spacing, another order of words or
clauses, another Korean particle. A look-alike asks for another answer in nearly the same words: another number, two
numbers exchanged, a negation, an opposite. A maker gives None for a text to which its change does not apply.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

Maker = Callable[[str, Random], "str | None"]

LETTERS_PER_TYPO, WORDS_PER_SWAP = 40, 12
_NEIGHBOURS = ["qwertyuiop", "asdfghjkl", "zxcvbnm"]
_PARTICLES = {
    "은": "는이가도만",
    "는": "은가도만",
    "이": "가은도",
    "가": "이는도",
    "을": "를은도",
    "를": "을는도",
    "에": "에서",
    "의": "",
    "로": "으로",
    "과": "와",
    "와": "과",
}
_OPPOSITES = {
    "more": "fewer",
    "less": "more",
    "before": "after",
    "after": "before",
    "first": "last",
    "largest": "smallest",
    "highest": "lowest",
    "bought": "sold",
    "gave": "received",
    "good": "bad",
    "always": "never",
    "있다": "없다",
    "많은": "적은",
    "이상": "이하",
    "늘어": "줄어",
    "높은": "낮은",
    "전에": "후에",
}


@dataclass(frozen=True)
class Planted:
    """A text made from the original at `index` by a change of one kind."""

    text: str
    index: int
    kind: str


def typo(text: str, rng: Random) -> str | None:
    """One slip for every `LETTERS_PER_TYPO` letters, at least one: wrong, missing, doubled or exchanged letters."""
    letters = [place for place, mark in enumerate(text) if mark.isalpha()]
    if len(letters) < 15:
        return None
    for place in sorted(rng.sample(letters, max(1, len(letters) // LETTERS_PER_TYPO)), reverse=True):
        text = _slip(text, place, rng)
    return text


def _slip(text: str, place: int, rng: Random) -> str:
    mark, following = text[place], text[place + 1 : place + 2]
    kind = rng.choice(["wrong", "missing", "double", "exchanged"])
    if "가" <= mark <= "힣":
        kind = "wrong"  # Hangul is typed letter by letter: a slip is another vowel, or another or no final consonant
    if kind == "exchanged" and following.isalpha() and following != mark:
        return text[:place] + following + mark + text[place + 2 :]
    new = {"missing": "", "double": mark * 2}.get(kind, _other_letter(mark, rng))
    return text[:place] + new + text[place + 1 :]


def _other_letter(mark: str, rng: Random) -> str:
    """A neighbouring key; in Hangul a syllable with one other letter."""
    if "가" <= mark <= "힣":
        code = ord(mark) - ord("가")
        initial, vowel, final = code // 588, code // 28 % 21, code % 28
        if rng.random() < 0.5:
            return chr(ord("가") + initial * 588 + (vowel + rng.randint(1, 20)) % 21 * 28 + final)
        return chr(ord("가") + initial * 588 + vowel * 28 + (final + rng.randint(1, 27)) % 28)
    row = next((row for row in _NEIGHBOURS if mark.lower() in row), "etaoin")
    return rng.choice([key for key in row if key != mark.lower()])


def spacing(text: str, rng: Random) -> str | None:
    """A third of the spaces gone, new ones inside words; digits stay as they stand, for `1 2` is not `12`."""
    out = []
    for before, mark, after in zip(" " + text, text, text[1:] + " ", strict=False):
        digits = before.isdigit() or after.isdigit() or mark.isdigit()
        gone = mark == " " and not digits and rng.random() < 0.33
        split = mark.isalpha() and after.isalpha() and rng.random() < 0.05
        out.append("" if gone else mark + " " if split else mark)
    return _if_changed(text, "".join(out))


def clauses(text: str, rng: Random) -> str | None:
    """Two clauses or sentences change places; a last question stays last as often as not."""
    parts = re.split(r"(?<=[,.;!?])\s+", text.strip())
    if len(parts) < 2:
        return None
    first = rng.randrange(len(parts) - 1)
    parts[first], parts[first + 1] = parts[first + 1], parts[first]
    return _if_changed(text, " ".join(parts))


def neighbours(text: str, rng: Random) -> str | None:
    """Two neighbouring words change places, once for every `WORDS_PER_SWAP` words."""
    words = text.split()
    if len(words) < 5:
        return None
    for _ in range(max(1, len(words) // WORDS_PER_SWAP)):
        first = rng.randrange(len(words) - 1)
        if not _has_digit(words[first] + words[first + 1]):
            words[first], words[first + 1] = words[first + 1], words[first]
    return _if_changed(" ".join(text.split()), " ".join(words))


def shuffled(text: str, rng: Random) -> str | None:
    """All words in any order, which only has one meaning where there are no numbers."""
    words = text.split()
    if len(words) < 4 or _has_digit(text):
        return None
    rng.shuffle(words)
    return _if_changed(" ".join(text.split()), " ".join(words))


def particles(text: str, rng: Random) -> str | None:
    """One or two Korean particles are others, missing, or set apart by a space."""
    places = [match.start(1) for match in re.finditer(r"[가-힣]{2,}?([은는이가을를에의로과와])(?=[\s,.?!]|$)", text)]
    if not places or len(text) < 15:
        return None
    for place in sorted(rng.sample(places, min(len(places), rng.choice([1, 1, 2]))), reverse=True):
        particle = text[place]
        new = rng.choice([*_PARTICLES[particle], "", " " + particle])
        text = text[:place] + new + text[place + 1 :]
    return text


def dressing(text: str, rng: Random) -> str | None:
    """Case, punctuation, full-width or decomposed letters, invisible marks."""
    change = rng.randrange(5)
    if change == 0:
        return _if_changed(text, text.upper())
    if change == 1:
        return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    if change == 2:
        return _if_changed(text, unicodedata.normalize("NFD", text))
    if change == 3:
        return "\u200b".join(text)
    return _if_changed(text, re.sub(r"[,;'\"]|[.?!]+(?=\s|$)", "", text) + "!!")


def number(text: str, rng: Random) -> str | None:
    """One number is another."""
    found = list(re.finditer(r"\d+", text))
    if not found:
        return None
    chosen = rng.choice(found)
    new = str(int(chosen[0]) + rng.choice([1, 2, 3, 5, 10, 20]))
    return text[: chosen.start()] + new + text[chosen.end() :]


def exchanged(text: str, rng: Random) -> str | None:
    """Two neighbouring numbers of one sentence change places."""
    pairs = re.findall(r"(?<![\d.,])\d+(?![\d,]|\.\d)", text)
    if len(pairs) < 2 or len(set(pairs)) < len(pairs):
        return None
    place = rng.randrange(len(pairs) - 1)
    swap = {pairs[place]: pairs[place + 1], pairs[place + 1]: pairs[place]}
    return re.sub(r"(?<![\d.,])\d+(?![\d,]|\.\d)", lambda match: swap.get(match[0], match[0]), text)


def negation(text: str, rng: Random) -> str | None:
    """`not` after the first auxiliary; in Korean the verb's ending, or `안` before the last word."""
    if re.search("[가-힣]", text):
        new = re.sub(r"한다(?=[.\s]|$)", "하지 않는다", text, count=1)
        return new if new != text else re.sub(r"(\S+)$", r"안 \1", text.strip()) if " " in text.strip() else None
    return _if_changed(text, re.sub(r"\b(is|are|was|were|does|did|can|will|should)\b", r"\1 not", text, count=1))


def opposite(text: str, rng: Random) -> str | None:
    """The first word that has an opposite becomes it."""
    for old, new in _OPPOSITES.items():
        pattern = old if re.search("[가-힣]", old) else rf"\b{old}\b"
        if re.search(pattern, text):
            return re.sub(pattern, new, text, count=1)
    return None


def _has_digit(text: str) -> bool:
    return any(mark.isdigit() for mark in text)


def _if_changed(old: str, new: str) -> str | None:
    return new if new != old else None


COPIES: dict[str, Maker] = {
    "typo": typo,
    "spacing": spacing,
    "clauses": clauses,
    "neighbours": neighbours,
    "shuffled": shuffled,
    "particles": particles,
    "dressing": dressing,
}
LOOKALIKES: dict[str, Maker] = {
    "number": number,
    "exchanged": exchanged,
    "negation": negation,
    "opposite": opposite,
}


def plant(texts: Sequence[str], makers: dict[str, Maker], each: int, seed: int) -> list[Planted]:
    """At most `each` planted texts of every kind, from originals drawn at random."""
    planted = []
    for kind, maker in makers.items():
        rng = Random(f"{seed} {kind}")
        count = 0
        for index in rng.sample(range(len(texts)), len(texts)):
            made = maker(texts[index], rng) if count < each else None
            if made is not None:
                planted.append(Planted(made, index, kind))
                count += 1
    return planted


_ASKED = [
    "{name}{은} {place}에서 {thing} {n}개를 사서 {other}에게 {m}개를 주었습니다. 남은 {thing}은 몇 개입니까?",
    "{place}에 있는 {thing} {n}개를 {m}명이 똑같이 나누면 한 사람이 몇 개를 가질 수 있을까요?",
    "{topic}의 뜻을 초등학생도 알 수 있게 쉬운 말로 설명해 주세요.",
    "{name}{은} 어제 {place}에서 {topic}에 대한 책을 읽었다. 이 문장을 높임말로 바꿔 주세요.",
    "{topic}과 {subject}의 차이를 표로 정리하고, 각각의 장점을 두 가지씩 적어 주세요.",
    "{other}에게 {topic}을 가르치려고 합니다. 한 달 동안의 수업 계획을 세워 주세요.",
]
_SLOTS = {
    "name": ["민수", "지영", "현우", "서연", "도윤", "하은"],
    "other": ["동생", "할머니", "짝꿍", "선생님", "외국인 친구", "조카"],
    "place": ["시장", "도서관", "학교 운동장", "바닷가", "기차역", "과수원", "박물관"],
    "thing": ["사과", "공책", "구슬", "달걀", "연필", "딱지", "귤"],
    "topic": [
        "광합성",
        "지진",
        "민주주의",
        "물가",
        "백신",
        "판소리",
        "중력",
        "저작권",
        "갯벌",
        "한글",
        "환율",
        "훈민정음",
    ],
    "subject": ["호흡", "화산", "독재", "임금", "항생제", "민요", "자기력", "상표권", "습지", "한자", "금리", "속담"],
}


def korean_questions(count: int, seed: int) -> list[str]:
    """Different Korean questions from few patterns: any two ask for something else."""
    rng = Random(seed)
    asked: dict[str, None] = {}
    while len(asked) < count:
        slots = {key: rng.choice(values) for key, values in _SLOTS.items()}
        particle = "은" if (ord(slots["name"][-1]) - ord("가")) % 28 else "는"
        numbers = {"n": rng.randrange(10, 200), "m": rng.randrange(2, 10)}
        asked[rng.choice(_ASKED).format(**slots, **numbers, 은=particle)] = None
    return list(asked)
