"""Stopping in good order when a signal asks for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llmdistill.errors import Interrupted


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted` inside the block; a second signal ends the process at once."""
    seen: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
