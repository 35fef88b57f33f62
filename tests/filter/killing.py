"""Filter runs in processes of their own, to be killed at a failpoint: `python -m tests.filter.killing`.

One process imports everything once and forks a real process for every run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmdistill.config import Pipeline
from tests.tiny import REPO

KILLED = 137

Kill = Callable[..., int]
"""Filters a pipeline until a failpoint is passed; gives the exit code."""


@contextmanager
def killing() -> Iterator[Kill]:
    """Start the process that forks."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.filter.killing"]
    process = subprocess.Popen(
        command, cwd=REPO, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def kill(pipeline: Pipeline, failpoint: str, **flags: bool) -> int:
        order = {"pipeline": pipeline.model_dump(mode="json"), "failpoint": failpoint, "flags": flags}
        print(json.dumps(order), file=process.stdin, flush=True)
        return int(process.stdout.readline())

    try:
        yield kill
    finally:
        process.stdin.close()
        process.wait(timeout=30)


def be_child(line: str) -> None:
    from llmdistill.filter import stage

    order = json.loads(line)
    os.environ["LLMDISTILL_FAILPOINT"] = order["failpoint"]
    stage.run(Pipeline.model_validate(order["pipeline"]), **order["flags"])


def serve() -> None:
    import llmdistill.engines.openai
    import llmdistill.filter.stage  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                be_child(line)
                os._exit(0)
            finally:
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
