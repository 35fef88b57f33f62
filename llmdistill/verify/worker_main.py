"""The process behind `worker`: reads [answer, reference] lines, writes `true`, `false` or `unknown`.

Run as a file, not as a module: it imports nothing of this package.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

_MEMORY_BYTES = 2 * 1024**3


def main() -> None:
    """Serve until the input ends."""
    _limit_memory()
    output = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints must not pass for a reply
    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401

    print("ready", file=output, flush=True)  # noqa: T201
    for line in sys.stdin:
        print(_compare(*json.loads(line)), file=output, flush=True)  # noqa: T201


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        return


def _compare(answer: str, reference: str) -> str:
    from math_verify import verify

    try:
        gold, found = _parse(reference), _parse(answer)
        if not gold or not found:
            return "unknown"
        return "true" if verify(gold, found, timeout_seconds=None, raise_on_error=True) else "false"
    except Exception:  # a parser fed with anything may raise anything; that is an expression that cannot be read
        return "unknown"


def _parse(text: str) -> list[Any]:
    """The expressions in a text; strings that are none are left out."""
    from math_verify import parse

    found = parse(text, parsing_timeout=None, raise_on_error=True)
    return [item for item in found if not isinstance(item, str)]


if __name__ == "__main__":
    main()
