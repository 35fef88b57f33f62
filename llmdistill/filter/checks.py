"""Format checks: rules about an answer's form that need no model.

Each check is a function from a record to a detail text when it fails, else None.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from llmdistill.config import Checks
from llmdistill.record import Record
from llmdistill.text import plain

Check = Callable[[Record], str | None]

_SORRY = r"(?:(?:i['’]?m|i am|we['’]?re) (?:\w+ )?sorry|sorry|i apologi[sz]e|(?:my )?apologies|unfortunately)"
_CANNOT = (
    r"(?:i|we)(?: (?:can ?not|can['’]t|won['’]t|will not|am (?:not able|unable) to|must decline to)|"
    r"['’]m (?:not able|unable) to) (?:\w+ly )?"
    r"(?:help (?:you|with)|assist|provide|answer|fulfil|comply|do that|generate|create|write|discuss|engage|"
    r"support|offer|share|give|access|browse|fulfill|respond|continue with)\b"
)
_AS_MACHINE = (
    r"as an? (?:\w+ )?(?:ai\b|artificial intelligence|language model|chatbot|virtual assistant|machine)[^.!?\n]{0,100}"
    r"\bi(?:['’]m not| am not| am unable| can ?not| can['’]t| do(?:n['’]t| not)| have no| haven['’]t| lack| won['’]t)\b"
)
_KO_CANNOT = (
    r"(?:도와|도움|답변|대답|답해|답을|제공|알려|작성|생성|수행|처리|응답|지원|요청|말씀)[^.\n]{0,20}"
    r"(?:수 ?[는가]? ?없(?:습니다|어요|음|다|네요)|어렵습니다|불가(?:능)?합니다|못합니다|못해요)"
)
_REFUSAL = re.compile(
    rf"^\W*(?:(?:{_SORRY}[^.!?\n]{{0,80}}?[,.]? )?(?:but )?(?:{_CANNOT}|{_AS_MACHINE})|"
    rf"(?:죄송|미안|유감|안타깝|아쉽)[^\n]{{0,60}}?{_KO_CANNOT}|"
    r"(?:저는|나는|죄송\S*|미안\S*)? ?(?:저는 )?(?:ai|인공지능|언어 ?모델|챗봇)[가-힣 ]{0,12}?"
    r"(?:로서|로써|이라서|라서|이므로|이기 때문에|이기에|이라)[^.\n]{0,60}(?:없|않|못|어렵))",
    re.IGNORECASE,
)
_OTHER_LANGUAGE = re.compile(
    r"translat|english|korean|japanese|chinese|mandarin|russian|arabic|hindi|thai|hebrew|ukrainian|greek|persian|"
    r"번역|옮겨|영어|영문|한국어|한글|일본어|중국어|러시아어|한자|프랑스어|스페인어|독일어",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_LOOP_TAIL = 1000
_LOOP_CHARS = 30
_LOOP_PERIODS = range(4, 122)
_MIN_LETTERS = 20
_LOOKED_AT = 20_000
"""Characters that tell in which script a text is written."""


def failed_check(record: Record, settings: Checks, language: str) -> tuple[str, str] | None:
    """(reason, detail) of the first check that the record fails, or None."""
    for reason, check in _checks(settings, language).items():
        detail = check(record)
        if detail is not None:
            return reason, detail
    return None


def _checks(settings: Checks, language: str) -> dict[str, Check]:
    wanted: dict[str, tuple[bool, Check]] = {
        "empty": (settings.min_chars > 0, lambda record: too_short(record, settings.min_chars)),
        "truncated": (settings.truncated, truncated),
        "repetition_loop": (settings.repetition, repetition_loop),
        "wrong_language": (settings.language, lambda record: wrong_language(record, language)),
        "refusal": (settings.refusal, refusal),
        "prompt_echoed": (settings.echo, prompt_echoed),
    }
    return {reason: check for reason, (on, check) in wanted.items() if on}


def too_short(record: Record, min_chars: int) -> str | None:
    """The answer has fewer characters than asked for."""
    length = len((record.answer or "").strip())
    return f"{length} characters" if length < min_chars else None


def truncated(record: Record) -> str | None:
    """The teacher ran into its token limit: a student trained on this learns not to stop."""
    if record.teacher and record.teacher.finish_reason == "length":
        return f"after {record.teacher.completion_tokens} tokens"
    return None


def repetition_loop(record: Record) -> str | None:
    """The text ends in a loop, or says the same few things over and over."""
    text = record.reply
    loop = _looping(text[-_LOOP_TAIL:].rstrip().rstrip(".,;!"))
    if loop:
        return f"ends with {loop.strip()[:40]!r} again and again"
    words = text.split()
    grams = [tuple(words[index : index + 4]) for index in range(len(words) - 3)]
    if len(grams) >= 30 and len(set(grams)) < 0.6 * len(grams):
        return f"{len(grams) - len(set(grams))} of {len(grams)} runs of four words stand there before"
    return None


def _looping(tail: str) -> str | None:
    """What the text says four times or more at its end, if anything."""
    for period in _LOOP_PERIODS:
        wanted, length = max(4 * period, _LOOP_CHARS), period
        while length < min(wanted, len(tail)) and tail[-length - 1] == tail[-length - 1 + period]:
            length += 1
        if length >= wanted and tail[-period:].strip():
            return tail[-period:]
    return None


def wrong_language(record: Record, language: str) -> str | None:
    """The answer is in another script than the pipeline's language, and the prompt did not lead there."""
    question = record.question[:_LOOKED_AT]
    answer, prompt = _letters(_CODE.sub("", (record.answer or "")[:_LOOKED_AT])), _letters(question)
    if len(answer) < _MIN_LETTERS or _OTHER_LANGUAGE.search(question):
        return None
    if language == "ko" and _share(answer, _HANGUL) < 0.2 <= _share(prompt, _HANGUL):
        return f"{_share(answer, _HANGUL):.0%} of the letters are Hangul"
    other = 1.0 - _share(answer, _LATIN)
    if language == "en" and other > 0.2 and (not prompt or _share(prompt, _LATIN) > 0.95):
        return f"{other:.0%} of the letters are not Latin"
    return None


_HANGUL = ("HANGUL",)
_LATIN = ("LATIN", "GREEK", "MICRO", "FEMININE", "MASCULINE", "MATHEMATICAL")


def _letters(text: str) -> list[str]:
    return [character for character in text if character.isalpha()]


def _share(letters: list[str], scripts: tuple[str, ...]) -> float:
    """Share of the letters that belong to a script; 0 where there are no letters."""
    return sum(unicodedata.name(letter, "").startswith(scripts) for letter in letters) / max(1, len(letters))


def refusal(record: Record) -> str | None:
    """The teacher declined to answer."""
    found = _REFUSAL.search((record.answer or "")[:200])
    return f"begins with {found.group(0)[:60]!r}" if found else None


def prompt_echoed(record: Record) -> str | None:
    """The answer is the prompt again, with little or nothing new."""
    answer, prompt = plain(record.answer or ""), plain(record.question)
    if len(prompt) < 30 or not answer:
        return None
    if answer == prompt:
        return "the answer is the prompt"
    if prompt in answer and len(answer) - len(prompt) < 0.2 * len(prompt):
        return "the answer repeats the prompt and adds next to nothing"
    return None
