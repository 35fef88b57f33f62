"""Work in processes of its own, to be killed at a failpoint: `python -m <module>` is sent one JSON object a line.

That process imports everything once and forks a real process for every order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.tiny import REPO

KILLED = 137

Send = Callable[[dict[str, Any]], int]
"""Has an order carried out by a child, until the failpoint that `order["failpoint"]` names; gives the exit code."""


@contextmanager
def forking(module: str) -> Iterator[Send]:
    """Start the process that forks."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPO),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=REPO,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def send(order: dict[str, Any]) -> int:
        print(json.dumps(order), file=process.stdin, flush=True)
        return int(process.stdout.readline())

    try:
        yield send
    finally:
        process.stdin.close()
        process.wait(timeout=30)


def serve(be_child: Callable[[dict[str, Any]], None]) -> None:
    """Fork a child for every order, until there are no more."""
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                order = json.loads(line)
                os.environ["LLMDISTILL_FAILPOINT"] = order["failpoint"]
                be_child(order)
                os._exit(0)
            finally:
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
