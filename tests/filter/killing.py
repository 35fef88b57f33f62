"""Filter runs that can be killed at a failpoint: `python -m tests.filter.killing`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llmdistill.config import Pipeline
from tests.forking import forking, serve

Kill = Callable[..., int]
"""Filters a pipeline until a failpoint is passed; gives the exit code."""


@contextmanager
def killing() -> Iterator[Kill]:
    with forking("tests.filter.killing") as send:

        def kill(pipeline: Pipeline, failpoint: str, **flags: bool) -> int:
            return send({"pipeline": pipeline.model_dump(mode="json"), "failpoint": failpoint, "flags": flags})

        yield kill


def be_child(order: dict[str, Any]) -> None:
    from llmdistill.filter import stage

    stage.run(Pipeline.model_validate(order["pipeline"]), **order["flags"])


if __name__ == "__main__":
    import llmdistill.engines.openai
    import llmdistill.filter.stage  # noqa: F401

    serve(be_child)
