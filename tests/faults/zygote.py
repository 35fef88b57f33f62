"""A process that has imported torch once and forks a real `llmdistill` process for every command.

Each child is a process of its own with its own signals, locks and exit code, so it can be
killed for real; only the seconds of imports are shared. Speaks one JSON object a line.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any


def import_everything() -> None:
    """Import what the stages import. Nothing is run, so that no thread exists before a fork."""
    import torch

    torch.set_num_threads(1)
    import rensa  # noqa: F401
    import sklearn.cluster  # noqa: F401
    import sklearn.decomposition  # noqa: F401
    import sklearn.feature_extraction.text  # noqa: F401
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM, Trainer  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    import llmdistill.cli
    import llmdistill.cli.tables
    import llmdistill.curate.stage
    import llmdistill.engines.openai
    import llmdistill.engines.transformers
    import llmdistill.evaluate.stage
    import llmdistill.filter.stage
    import llmdistill.generate.stage
    import llmdistill.report.stage
    import llmdistill.stages
    import llmdistill.train.checkpoints
    import llmdistill.train.stage
    import llmdistill.train.trainers  # noqa: F401


def trace_answers(path: str) -> None:
    """Note every answer that the real engine gives, as one line `model kind record`, before anyone else sees it."""
    from llmdistill.engines import resume

    really_open = resume.open_engine
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def noted(requests: Any, kinds: dict[str, str]) -> Any:
        for request in requests:
            kinds[request.id] = f"write-{request.sampling.max_new_tokens}" if request.sampling else "score"
            yield request

    class Traced:
        def __init__(self, settings: Any, source: Any, state_dir: Any) -> None:
            self.engine, self.name = really_open(settings, source, state_dir), source.name.split("/")[-1]
            self.status = self.engine.status

        def complete(self, requests: Any) -> Any:
            kinds: dict[str, str] = {}
            for completion in self.engine.complete(noted(requests, kinds)):
                os.write(handle, f"{self.name} {kinds.pop(completion.id)} {completion.id}\n".encode())
                yield completion

        def close(self) -> None:
            self.engine.close()

    resume.open_engine = Traced


def be_child(order: dict[str, Any]) -> int:
    """Run one command as the console script would; gives its exit code."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    sys.argv = ["llmdistill", *order["arguments"]]
    if order.get("trace"):
        trace_answers(order["trace"])
    if order.get("file_size"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"],) * 2)
    from llmdistill.cli import main

    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def start(order: dict[str, Any]) -> dict[str, Any]:
    pid = os.fork()
    if pid:
        return {"pid": pid}
    code = 1
    try:
        code = be_child(order)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(order: dict[str, Any]) -> dict[str, Any]:
    """Exit code of a child, negative for a signal, and its most memory in MB; one that takes too long is killed."""
    deadline = time.monotonic() + order["timeout"]
    while True:
        pid, status, used = os.wait4(order["pid"], os.WNOHANG)
        if pid:
            return {"code": os.waitstatus_to_exitcode(status), "peak_mb": used.ru_maxrss / 1024}
        if time.monotonic() > deadline:
            os.kill(order["pid"], signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.005)


def serve() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import_everything()
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        reply = start(order) if order["do"] == "start" else wait(order)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve()
