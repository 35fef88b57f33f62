"""Verifiers: is an answer right, as far as that can be told without a model?

Each is a function from an answer, a reference and the settings to `Verified`. None of them raises on
any text, and each is bounded in time. `ok` None means that it cannot decide, which is not "wrong".
"""

from __future__ import annotations

from collections.abc import Callable

from llmdistill.config import Verify
from llmdistill.verify import choice, exact, maths, pattern, python_tests, schema, text
from llmdistill.verify.base import MAX_CHARS, Verified

__all__ = ["VERIFIERS", "VERSION", "Verified", "verify", "verify_in_context"]

VERSION = 1
"""To be raised when a verifier decides otherwise than before: verdicts in journals are then not used again."""

VERIFIERS: dict[str, Callable[[str, str, Verify], Verified]] = {
    "math": maths.verify,
    "choice": choice.verify,
    "exact": exact.verify,
    "text": text.verify,
    "json": schema.verify,
    "regex": pattern.verify,
    "python": python_tests.verify,
}


def verify(answer: str, reference: str, settings: Verify) -> Verified:
    """The word of the verifier that `settings.kind` names."""
    if not answer.strip():
        return Verified(None, "no answer")
    if not reference.strip() and not settings.has_rule:
        return Verified(None, "no reference")
    if max(len(answer), len(reference)) > MAX_CHARS:
        return Verified(None, f"longer than {MAX_CHARS:,} characters")
    return VERIFIERS[settings.kind](answer, reference, settings)


def verify_in_context(answer: str, reference: str, prompt: str, settings: Verify) -> Verified:
    """As `verify`; the options of a multiple-choice question are read from its prompt when none are configured."""
    if settings.kind == "choice" and not settings.choices:
        settings = settings.model_copy(update={"choices": choice.options_of(prompt)})
    return verify(answer, reference, settings)
