"""`llmdistill vision kd|search|dd`: distillation of image networks and of image data sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmdistill.cli.options import AsJson, Overrides, PipelineFile, print_json
from llmdistill.cli.vision_tables import print_plan, print_sets, print_table, print_trials

if TYPE_CHECKING:
    from llmdistill.vision.config import Pipeline

app = typer.Typer(help="Distil image networks and image data sets.", rich_markup_mode=None)

PlanOnly = Annotated[
    bool, typer.Option("--plan", help="Show what would be done and how long it takes, without doing it.")
]


@app.command("kd")
def kd(pipeline: PipelineFile, set_: Overrides = None, plan: PlanOnly = False, as_json: AsJson = False) -> None:
    """Train a student by every method of a pipeline file, under one protocol, and compare."""
    from llmdistill.pipeline_file import load_as
    from llmdistill.vision.kd.methods import KdPipeline
    from llmdistill.vision.kd.plan import plan_only
    from llmdistill.vision.kd.run import run

    settings = load_as(KdPipeline, pipeline, set_ or [])
    if plan:
        print_plan(plan_only(settings), as_json)
    else:
        _show(run(settings), print_table, as_json, settings)


@app.command("search")
def search(pipeline: PipelineFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Search a method and its settings on the validation part; the winner becomes a pipeline file and is run."""
    from llmdistill.pipeline_file import load_as
    from llmdistill.run.progress import say
    from llmdistill.vision.kd.search import SearchPipeline
    from llmdistill.vision.kd.search import search as find

    result = find(load_as(SearchPipeline, pipeline, set_ or []))
    if as_json:
        print_json(result)
    else:
        print_trials(result)
        print_table(result["table"])
    say(f"winner: llmdistill vision kd {result['file']}")


@app.command("dd")
def dd(pipeline: PipelineFile, set_: Overrides = None, plan: PlanOnly = False, as_json: AsJson = False) -> None:
    """Distil a data set into a few images a class by every method of a pipeline file, and compare the sets."""
    from llmdistill.pipeline_file import load_as
    from llmdistill.vision.dd.methods import DdPipeline
    from llmdistill.vision.dd.run import plan_only, run

    settings = load_as(DdPipeline, pipeline, set_ or [])
    if plan:
        print_plan(plan_only(settings), as_json)
    else:
        _show(run(settings), print_sets, as_json, settings)


def _show(table: dict[str, Any], as_text: Callable[[dict[str, Any]], None], as_json: bool, settings: Pipeline) -> None:
    """A run's table, and where its page is."""
    from llmdistill.run.progress import say

    (print_json if as_json else as_text)(table)
    say(f"report: {settings.run_path / 'report' / 'index.html'}")


@app.callback()
def vision() -> None:
    """Distil image networks and image data sets."""
