"""Forks processes that ask a batch server and journal its answers the way a stage does.

Each child is a process of its own that can be killed for real; only the seconds of imports are shared.
Speaks one JSON object a line.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmdistill.config import Model
from llmdistill.engines.base import Request, Sampling
from llmdistill.engines.batch_api import BatchEngine
from llmdistill.errors import BudgetError, LlmdistillError
from llmdistill.run.journal import Journal
from tests.faults.zygote import wait

SAMPLING = Sampling(max_new_tokens=16)


def request(number: int) -> Request:
    """One of the questions."""
    return Request(f"r{number}", [{"role": "user", "content": f"question {number}."}], SAMPLING)


def settings(api: dict[str, Any]) -> Model:
    """The model, as a pipeline file would name it."""
    return Model.model_validate({"model": "teacher", "engine": "openai", "api": {"batch": True, **api}})


def within_budget(requests: list[Request], most: int | None) -> Iterator[Request]:
    """Requests, until there is no money for another."""
    for count, found in enumerate(requests):
        if count == most:
            raise BudgetError("no money for another request")
        yield found


def ask(folder: Path, numbers: range, api: dict[str, Any], budget: int | None) -> None:
    """Answer what the journal does not hold."""
    engine = BatchEngine.open(settings(api), folder / "batches")
    try:
        with Journal(folder / "journal.jsonl") as journal:
            owed = [request(number) for number in numbers if f"r{number}" not in journal]
            if owed:
                for found in engine.complete(within_budget(owed, budget)):
                    values = {"text": found.text, "finish_reason": found.finish_reason, "error": found.error}
                    journal.append(found.id, num_lost=found.num_lost, tokens=found.prompt_tokens, **values)
    finally:
        engine.close()


def be_child(order: dict[str, Any]) -> int:
    """Exit code, as the command line would have it."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(order["env"])
    try:
        ask(Path(order["folder"]), range(*order["numbers"]), order["api"], order["budget"])
    except LlmdistillError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 99
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


def serve() -> None:
    import openai  # noqa: F401

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        reply = start(order) if order["do"] == "start" else wait(order)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve()
