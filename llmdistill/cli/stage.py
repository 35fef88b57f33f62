"""`llmdistill generate|filter|curate|signals|train|evaluate|report`: one stage of a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer

from llmdistill.cli.options import (
    AsJson,
    Fresh,
    MaxCost,
    MaxTokens,
    NumProcesses,
    Overrides,
    PipelineFile,
    RetryFailed,
    print_json,
    with_budget,
    with_processes,
)

HELP = {
    "generate": "Read the prompts and ask the teacher for a rationale and an answer to each.",
    "filter": "Keep the answers that pass the format checks and the judge.",
    "curate": "Remove copies and choose a small, diverse training set.",
    "signals": "Store the teacher's distribution over the chosen answers, for the training.",
    "train": "Train the student by SFT or by distilling the teacher's distribution.",
    "evaluate": "Compare student, untrained student and teacher on held-out prompts.",
    "report": "Write one HTML page about the run.",
}


Rejudge = Annotated[
    bool, typer.Option("--rejudge", help="Judge everything once more; earlier verdicts stay on the records.")
]

ASK = ("generate", "filter", "evaluate")
"""Stages that ask models, so that a budget concerns them."""


def command(name: str) -> Callable[..., None]:
    """The command function of a stage. It returns at once when the stage is done."""

    def stage(pipeline: PipelineFile, set_: Overrides = None, fresh: Fresh = False, as_json: AsJson = False) -> None:
        _run(name, pipeline, set_ or [], as_json, fresh=fresh)

    def asking_stage(
        pipeline: PipelineFile,
        set_: Overrides = None,
        fresh: Fresh = False,
        retry_failed: RetryFailed = False,
        max_cost: MaxCost = None,
        max_tokens: MaxTokens = None,
        as_json: AsJson = False,
    ) -> None:
        """A stage that asks models, within the budget."""
        overrides = with_budget(set_, max_cost, max_tokens)
        _run(name, pipeline, overrides, as_json, fresh=fresh, retry_failed=retry_failed)

    def filter_stage(
        pipeline: PipelineFile,
        set_: Overrides = None,
        fresh: Fresh = False,
        retry_failed: RetryFailed = False,
        rejudge: Rejudge = False,
        max_cost: MaxCost = None,
        max_tokens: MaxTokens = None,
        as_json: AsJson = False,
    ) -> None:
        """As `asking_stage`, and everything can be judged once more."""
        overrides = with_budget(set_, max_cost, max_tokens)
        _run(name, pipeline, overrides, as_json, fresh=fresh, retry_failed=retry_failed, rejudge=rejudge)

    def train_stage(
        pipeline: PipelineFile,
        set_: Overrides = None,
        fresh: Fresh = False,
        num_processes: NumProcesses = None,
        as_json: AsJson = False,
    ) -> None:
        """As `stage`, in several processes where that is wanted."""
        _run(name, pipeline, with_processes(set_, num_processes), as_json, fresh=fresh)

    if name == "filter":
        return filter_stage
    if name == "train":
        return train_stage
    return asking_stage if name in ASK else stage


def _run(name: str, pipeline: str, overrides: list[str], as_json: bool, **flags: bool) -> None:
    from llmdistill.cli.tables import print_comparison
    from llmdistill.pipeline_file import load_pipeline
    from llmdistill.stages import run_stages

    names = ["prompts", "generate"] if name == "generate" else [name]
    manifest = run_stages(load_pipeline(pipeline, overrides), names, **flags)[name]
    if as_json:
        print_json(asdict(manifest))
    elif name == "evaluate":
        print_comparison(manifest.metrics["table"])
