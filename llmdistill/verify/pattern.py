"""The answer matches a regular expression."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from llmdistill.config import Verify
from llmdistill.verify.base import Verified, shown

_MAX_PATTERN = 2000


def verify(answer: str, reference: str, settings: Verify) -> Verified:
    """Whether `settings.pattern`, else the reference taken as a pattern, is found in the answer.

    The search ends after `settings.timeout` seconds: some patterns take time that doubles with every character.
    """
    pattern = settings.pattern if settings.pattern is not None else reference
    if len(pattern) > _MAX_PATTERN:
        return Verified(None, f"a pattern of more than {_MAX_PATTERN:,} characters")
    compiled = compiled_pattern(pattern)
    if isinstance(compiled, str):
        return Verified(None, f"no regular expression: {shown(compiled)}")
    try:
        found = compiled.search(answer, timeout=settings.timeout)
    except TimeoutError:
        return Verified(None, f"no result within {settings.timeout:g} s")
    except (MemoryError, RecursionError) as error:
        return Verified(None, type(error).__name__)
    return Verified(found is not None, f"matches {shown(pattern)}" if found else f"does not match {shown(pattern)}")


@lru_cache(maxsize=64)
def compiled_pattern(pattern: str) -> Any:
    """The compiled pattern, or what is wrong with it."""
    import regex

    try:
        return regex.compile(pattern, regex.VERSION0)
    except (regex.error, RecursionError, MemoryError, OverflowError, ValueError) as error:
        return str(error) or type(error).__name__
