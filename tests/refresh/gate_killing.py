"""Comparisons that can be killed at a failpoint: `python -m tests.refresh.gate_killing`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmdistill.config import Pipeline
from tests.forking import forking, serve

Compare = Callable[[Pipeline, Path, str], int]
"""Compares a version with a champion until a failpoint is passed; gives the exit code. `gate.json` has the result."""


@contextmanager
def comparing() -> Iterator[Compare]:
    with forking("tests.refresh.gate_killing") as send:

        def compare(pipeline: Pipeline, champion: Path, failpoint: str) -> int:
            order = {"pipeline": pipeline.model_dump(mode="json"), "champion": str(champion), "failpoint": failpoint}
            return send(order)

        yield compare


def be_child(order: dict[str, Any]) -> None:
    from llmdistill.refresh.gate import compare

    pipeline = Pipeline.model_validate(order["pipeline"])
    found = compare(pipeline, Path(order["champion"]), 0)
    (pipeline.run_path / "gate.json").write_text(json.dumps(asdict(found)))


def import_everything() -> None:
    import torch

    torch.set_num_threads(1)
    import scipy.optimize  # noqa: F401
    import scipy.stats  # noqa: F401
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM  # noqa: F401

    import llmdistill.engines.transformers
    import llmdistill.refresh.gate  # noqa: F401


if __name__ == "__main__":
    import_everything()
    serve(be_child)
