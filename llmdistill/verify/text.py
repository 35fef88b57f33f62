"""The answer is the reference but for case, punctuation and spacing."""

from __future__ import annotations

import re
import unicodedata

from llmdistill.config import Verify
from llmdistill.verify.base import Verified, differs, final_answer, shown

_PARTICLE = re.compile(r"(?<=[가-힣a-z0-9])(?:입니다|이에요|예요|이다|으로|에서|이|가|을|를|은|는|로|에|의|도)$")


def verify(answer: str, reference: str, settings: Verify) -> Verified:
    """Equality of the normalised final answers.

    A Hangul particle at the end (서울은, 서울) is not cut off: where the two differ by one only, nothing is decided.
    """
    stated = final_answer(answer, short_marker=False).text
    gold = normalise(reference)
    if not gold:
        return Verified(None, "the reference is punctuation only")
    if gold in (normalise(stated), normalise(answer)):
        return Verified(True, f"equal to {shown(reference)}")
    found = normalise(stated)
    if _PARTICLE.sub("", found) == gold or found == _PARTICLE.sub("", gold):
        return Verified(None, f"{shown(stated)} differs from {shown(reference)} by a particle")
    return differs(stated, reference)


def normalise(text: str) -> str:
    """Composed (NFC), casefolded, punctuation as space, single spaces; signs and symbols (-5, +, %, C#) stay."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    kept = (" " if _is_punctuation(text, place) else text[place] for place in range(len(text)))
    return " ".join("".join(kept).split())


def _is_punctuation(text: str, place: int) -> bool:
    """Punctuation that says nothing: not the point of 3.5, the sign of -5, or the marks of C# and 50%."""
    character = text[place]
    if not unicodedata.category(character).startswith("P") or character in "%#@&/":
        return False
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if character in ".,:" and before.isdigit() and after.isdigit():
        return False
    return not (character == "-" and after.isdigit() and not before.isalnum())
