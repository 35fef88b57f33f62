"""Named points where a test can kill this process, so that every commit boundary is hit.

`LLMDISTILL_FAILPOINT=journal.after_write:37` ends the process, as `kill -9` would,
when that point is passed for the 37th time. Without the variable, nothing happens.
"""

from __future__ import annotations

import os
from collections import Counter

_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Die here at once, without any clean-up, if the environment asks for it."""
    wanted = os.environ.get("LLMDISTILL_FAILPOINT")
    if not wanted:
        return
    point, _, count = wanted.partition(":")
    if point != name:
        return
    _passed[name] += 1
    if _passed[name] >= int(count or 1):
        os._exit(137)
