"""Real `llmdistill` processes that die at a failpoint, as by `kill -9`; they share the seconds of imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from tests.tiny import REPO

KILLED = 137

Command = tuple[Sequence[str], Sequence[str]]
"""Arguments of the command line, and the failpoints at which it dies, one after the other."""


def killed(*commands: Command) -> None:
    """Run each command once for each of its failpoints; every time it has to die there."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    process = [sys.executable, "-m", "tests.vision.kd.killing", json.dumps(commands)]
    done = subprocess.run(process, cwd=REPO, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1])) == {KILLED}, done.stderr


def main(commands: Sequence[Command]) -> None:
    """Fork a process for each failpoint, before anything has run that a fork would break."""
    import optuna  # noqa: F401
    import sklearn.datasets  # noqa: F401

    import llmdistill.cli
    import llmdistill.vision.kd.search  # noqa: F401

    codes = []
    for arguments, failpoints in commands:
        for failpoint in failpoints:
            process = os.fork()
            if process == 0:
                os.environ["LLMDISTILL_FAILPOINT"] = failpoint
                sys.argv = ["llmdistill", *arguments]
                os._exit(llmdistill.cli._exit_code())
            codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
    print(json.dumps(codes))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
