"""Ends what an engine started when the process that started it is gone, however that ended.

A process killed at once (SIGKILL, out of memory) cannot stop its children, and vLLM's engine would keep
its memory for ever. So a small process of its own waits for that end at a pipe. Every process of the
engine is known by a mark in its environment.

    python watch.py MARK    # reads its stdin until the other end is closed
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_VARIABLE = "LLMDISTILL_ENGINE"
_KEEP_ENVIRONMENT = "SPT_NOENV"
"""Has setproctitle, with which vLLM names its processes, not write the name over the environment."""

_GRACE = 1.0
"""Seconds the engine's processes have to end by themselves."""


class Watch:
    """A watcher of the processes started inside `marked`."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, self._mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Mark the processes that are started inside the block, and those that these start."""
        marks = {_VARIABLE: self._mark, _KEEP_ENVIRONMENT: "1"}
        os.environ.update(marks)
        try:
            yield
        finally:
            for name in marks:
                del os.environ[name]

    def close(self) -> None:
        """End what is left of the processes, and wait until they are gone."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def _end(mark: str) -> None:
    import psutil

    time.sleep(_GRACE)
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_VARIABLE) == mark:
                process.kill()


if __name__ == "__main__":
    sys.stdin.buffer.read()
    _end(sys.argv[1])
