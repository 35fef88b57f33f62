"""Comparisons in processes of their own, to be killed at a failpoint: `python -m tests.refresh.gate_killing`.

One process imports everything once and forks a real process for every comparison.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from llmdistill.config import Pipeline
from tests.tiny import REPO

KILLED = 137

Compare = Callable[[Pipeline, Path, str], int]
"""Compares a version with a champion until a failpoint is passed; gives the exit code. `gate.json` has the result."""


@contextmanager
def comparing() -> Iterator[Compare]:
    """Start the process that forks."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "tests.refresh.gate_killing"]
    process = subprocess.Popen(
        command, cwd=REPO, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def compare(pipeline: Pipeline, champion: Path, failpoint: str) -> int:
        order = {"pipeline": pipeline.model_dump(mode="json"), "champion": str(champion), "failpoint": failpoint}
        print(json.dumps(order), file=process.stdin, flush=True)
        return int(process.stdout.readline())

    try:
        yield compare
    finally:
        process.stdin.close()
        process.wait(timeout=30)


def be_child(line: str) -> None:
    from llmdistill.refresh.gate import compare

    order = json.loads(line)
    os.environ["LLMDISTILL_FAILPOINT"] = order["failpoint"]
    pipeline = Pipeline.model_validate(order["pipeline"])
    found = compare(pipeline, Path(order["champion"]), 0)
    (pipeline.run_path / "gate.json").write_text(json.dumps(asdict(found)))


def serve() -> None:
    import torch

    torch.set_num_threads(1)
    import scipy.optimize  # noqa: F401
    import scipy.stats  # noqa: F401
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM  # noqa: F401

    import llmdistill.engines.transformers
    import llmdistill.refresh.gate  # noqa: F401

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
