"""The answer is the reference, character for character."""

from __future__ import annotations

import unicodedata

from llmdistill.config import Verify
from llmdistill.verify.base import Verified, differs


def verify(answer: str, reference: str, settings: Verify) -> Verified:
    """Equality after Unicode composition (NFC) and without outer white space; case and punctuation count."""
    one, other = (unicodedata.normalize("NFC", text).strip() for text in (answer, reference))
    return Verified(True, "equal") if one == other else differs(one, other)
