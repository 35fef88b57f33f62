"""A process of its own for math-verify, ended and begun anew when a comparison takes too long.

math-verify's own timeouts are signals, which work only in the main thread and would disturb ours. They are
off; a comparison is bounded by a deadline here and by the memory limit that the process sets itself.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

_MAIN = Path(__file__).with_name("worker_main.py")
_START_SECONDS = 60.0
_REPLY_BYTES = 4096


class _Worker:
    """The process. It ends by itself when this one does, because its input ends."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_MAIN)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run to handle
        )
        self.started = self._read(_START_SECONDS) == b"ready"

    def ask(self, answer: str, reference: str, seconds: float) -> bytes | None:
        """The process's line about two texts; None when it gave none in time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([answer, reference]).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        return self._read(seconds)

    def _read(self, seconds: float) -> bytes | None:
        assert self._process.stdout is not None
        line, deadline, handle = b"", time.monotonic() + seconds, self._process.stdout.fileno()
        while not line.endswith(b"\n"):
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            part = os.read(handle, _REPLY_BYTES)
            if not part:
                return None
            line += part
        return line.strip()

    def end(self) -> None:
        """Kill the process and wait for it."""
        self._process.kill()
        self._process.communicate()


_lock = threading.Lock()
_worker: _Worker | None = None


def compare_expressions(answer: str, reference: str, seconds: float) -> tuple[bool | None, str]:
    """Whether two mathematical expressions are equal; (None, why) where that cannot be said within `seconds`."""
    global _worker
    with _lock:
        if _worker is None:
            _worker = _Worker()
            atexit.register(end_worker)
        if not _worker.started:
            end_worker()
            return None, "math-verify cannot be started (pip install math-verify)"
        try:
            reply = _worker.ask(answer, reference, seconds)
        except BaseException:
            end_worker()  # an answer left in the pipe would be taken for the next one's
            raise
        if reply is None:
            end_worker()
            return None, f"no result within {seconds:g} s and the memory limit"
    return {b"true": (True, ""), b"false": (False, "")}.get(reply, (None, "an expression that cannot be read"))


def end_worker() -> None:
    """End the process; the next comparison starts another."""
    global _worker
    if _worker is not None:
        worker, _worker = _worker, None
        worker.end()
