"""Text as it is compared, not as it is kept."""

from __future__ import annotations

import unicodedata


def plain(text: str) -> str:
    """The text without what does not tell phrases apart: case, spacing, compatibility characters (width, ligatures)."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())
