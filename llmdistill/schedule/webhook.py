"""Telling an address how a refresh ended. It may hold a token and is never printed; failing to tell fails nothing."""

from __future__ import annotations

import logging
import os
import time
from typing import Any
from urllib.parse import urlsplit

from llmdistill.run.progress import say

WAITS = (1.0, 4.0)
"""Seconds before the second and the third try."""

_TIMEOUT = 10.0
_AGAIN = (408, 425, 429)


def tell(variable: str, body: dict[str, Any]) -> bool:
    """Post `body` as JSON to the address in an environment variable; False, and a line that says why, if it fails."""
    address = os.environ.get(variable, "").strip()
    problem: str | None = f"the environment variable {variable} is not set"
    if address:
        problem = _told(address, body) if _is_web(address) else f"{variable} holds no http(s) address"
    if problem:
        say(f"webhook: nobody was told ({problem})")
    return problem is None


def _is_web(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def _told(address: str, body: dict[str, Any]) -> str | None:
    """Try a few times; gives what is wrong, without the address, or None."""
    import httpx2

    from llmdistill.engines.endpoint import is_loopback

    by_proxy = not is_loopback(urlsplit(address).hostname or "")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs the address of every request
    logging.getLogger("httpcore2").setLevel(logging.WARNING)
    problem = None
    for wait in (0.0, *WAITS):
        time.sleep(wait)
        try:
            reply = httpx2.post(address, json=body, timeout=_TIMEOUT, trust_env=by_proxy)
        except Exception as error:  # whatever it is, and its text may hold the address
            problem = type(error).__name__
            continue
        if reply.is_success:
            return None
        problem = f"the server answers with status {reply.status_code}"
        if reply.status_code < 500 and reply.status_code not in _AGAIN:
            break
    return problem
