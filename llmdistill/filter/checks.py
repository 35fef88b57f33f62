"""Format checks: rules about an answer's form that need no model.

Each check is a function from a record to a detail text when it fails, else None.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from llmdistill.config import Checks
from llmdistill.record import Record

Check = Callable[[Record], str | None]

_REFUSAL = re.compile(
    r"^\W*(?:i['’]?m (?:really |very )?sorry,? (?:but )?(?:i|as an)\b|sorry,? (?:but )?i (?:can|am)|"
    r"i (?:can(?:no|')t|am (?:not able|unable) to|won['’]t) (?:help|assist|provide|answer|fulfil|comply|do that)|"
    r"as an ai(?: language)? model,? i (?:can|do|am)|"
    r"죄송(?:하지만|합니다만|합니다).{0,40}(?:없|못|어렵)|(?:도와|답변|제공|대답)\S* ?(?:드릴 수 없|할 수 없))",
    re.IGNORECASE,
)
_LOOP_TAIL = 1000
_MIN_LETTERS = 20


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
    loop = re.search(r"(\S.{3,120}?)\1{3,}\s*\S{0,120}$", text[-_LOOP_TAIL:], re.DOTALL)
    if loop:
        return f"ends with {loop.group(1).strip()[:40]!r} again and again"
    words = text.split()
    grams = [tuple(words[index : index + 4]) for index in range(len(words) - 3)]
    if len(grams) >= 30 and len(set(grams)) < 0.6 * len(grams):
        return f"{len(grams) - len(set(grams))} of {len(grams)} runs of four words stand there before"
    return None


def wrong_language(record: Record, language: str) -> str | None:
    """The answer is in another script than the pipeline's language, and the prompt did not lead there."""
    answer, prompt = _hangul_share(record.answer or ""), _hangul_share(record.question)
    if answer is None or re.search(r"translat|번역|영어로|한국어로|Korean|English", record.question):
        return None
    if language == "ko" and answer < 0.2 and (prompt or 0.0) >= 0.2:
        return f"{answer:.0%} of the letters are Hangul"
    other = _foreign_share(record.answer or "")
    if language == "en" and other > 0.2 and _foreign_share(record.question) < 0.05:
        return f"{other:.0%} of the letters are not Latin"
    return None


def _letters(text: str) -> list[str]:
    return [character for character in text if character.isalpha()]


def _hangul_share(text: str) -> float | None:
    """Share of Hangul among the letters; None when there are too few letters to tell."""
    letters = _letters(text)
    if len(letters) < _MIN_LETTERS:
        return None
    return sum("가" <= letter <= "힣" for letter in letters) / len(letters)


def _foreign_share(text: str) -> float:
    letters = _letters(text)
    if len(letters) < _MIN_LETTERS:
        return 0.0
    foreign = sum(not unicodedata.name(letter, "").startswith(("LATIN", "GREEK", "MICRO")) for letter in letters)
    return foreign / len(letters)


def refusal(record: Record) -> str | None:
    """The teacher declined to answer."""
    found = _REFUSAL.search((record.answer or "")[:200])
    return f"begins with {found.group(0)[:60]!r}" if found else None


def prompt_echoed(record: Record) -> str | None:
    """The answer is the prompt again, with little or nothing new."""
    answer, prompt = _plain(record.answer or ""), _plain(record.question)
    if len(prompt) < 30 or not answer:
        return None
    if answer == prompt:
        return "the answer is the prompt"
    if prompt in answer and len(answer) - len(prompt) < 0.2 * len(prompt):
        return "the answer repeats the prompt and adds next to nothing"
    return None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
