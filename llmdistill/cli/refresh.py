"""`llmdistill refresh`: take in what is new, and let a student that is not worse become the champion."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from llmdistill.config import Pipeline

Rollback = Annotated[bool, typer.Option("--rollback", help="Make the former champion the champion again.")]
History = Annotated[bool, typer.Option("--history", help="Show every version with its data, scores and costs.")]


def refresh(
    pipeline: PipelineFile,
    set_: Overrides = None,
    rollback: Rollback = False,
    history: History = False,
    fresh: Fresh = False,
    retry_failed: RetryFailed = False,
    max_cost: MaxCost = None,
    max_tokens: MaxTokens = None,
    num_processes: NumProcesses = None,
    as_json: AsJson = False,
) -> None:
    """Ask, judge and embed what is new, train on all of it, and promote the student if it is not worse."""
    from llmdistill.pipeline_file import load_pipeline

    budgets = ("budget", "refresh.budget")  # of the first run, and of every refresh after it
    overrides = with_processes(with_budget(set_, max_cost, max_tokens, budgets), num_processes)
    settings = load_pipeline(pipeline, overrides)
    if history:
        _show_history(settings, as_json)
    elif rollback:
        _roll_back(settings, as_json)
    else:
        _refresh(settings, fresh, retry_failed, as_json)


def _refresh(settings: Pipeline, fresh: bool, retry_failed: bool, as_json: bool) -> None:
    from llmdistill.errors import LlmdistillError, NotPromotedError
    from llmdistill.refresh.refresh import REFUSED, refresh
    from llmdistill.run.progress import say
    from llmdistill.schedule.status import report_outcome

    try:
        outcome = refresh(settings, fresh=fresh, retry_failed=retry_failed)
    except LlmdistillError as error:
        report_outcome(settings, error.exit_code, "failed", str(error), None)
        raise
    refused = outcome.what == REFUSED
    code = NotPromotedError.exit_code if refused else 0
    report_outcome(settings, code, outcome.what, outcome.message, outcome.version)
    if as_json:
        print_json({**asdict(outcome), "report": str(outcome.report)})
    say(f"report: {outcome.report}")
    if refused:
        raise NotPromotedError(outcome.message, do="see its report; the champion stays as it is")
    say(outcome.message)


def _roll_back(settings: Pipeline, as_json: bool) -> None:
    from llmdistill.refresh.line import Line
    from llmdistill.run.lock import locked
    from llmdistill.run.progress import say

    line = Line(settings.run_path)
    with locked(line.dir):
        was, now = line.roll_back()
    if as_json:
        print_json({"was": was, "champion": now})
    say(f"version {now} is the champion again, in place of version {was}")


def _show_history(settings: Pipeline, as_json: bool) -> None:
    from llmdistill.cli.tables import print_history
    from llmdistill.refresh.line import Line

    rows = Line(settings.run_path).history()
    if as_json:
        print_json(rows)
    else:
        print_history(rows)
