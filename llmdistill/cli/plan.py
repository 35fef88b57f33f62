"""`llmdistill plan`: what a run would do, without doing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmdistill.cli.options import AsJson, Overrides, PipelineFile, print_json

if TYPE_CHECKING:
    from llmdistill.config import Pipeline

Sample = Annotated[
    int,
    typer.Option(
        "--sample", metavar="N", min=0, help="Ask the teacher N prompts to measure; the run reuses the answers."
    ),
]


LaunchFile = Annotated[
    str | None,
    typer.Option(
        "--launch-file", metavar="FILE", help="Write Accelerate's configuration for training on several machines."
    ),
]


def plan(
    pipeline: PipelineFile,
    set_: Overrides = None,
    sample: Sample = 0,
    launch_file: LaunchFile = None,
    as_json: AsJson = False,
) -> None:
    """Check a pipeline file and show what a run would do: records, requests, tokens, money, disk, time."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from llmdistill.cli.inspect import printable
    from llmdistill.pipeline_file import load_pipeline
    from llmdistill.plan import make_plan

    settings = load_pipeline(pipeline, set_ or [])
    made = make_plan(settings, sample)
    if launch_file is not None:
        _write_launch_file(settings, launch_file)
    if as_json:
        print_json(asdict(made))
        return
    columns = ["stage", "records", "requests", "tokens in", "tokens out", "disk", "cost", "time"]
    shown = Table(title=f"plan of {made.name} -> {made.run_dir}", title_justify="left", box=None, padding=(0, 1, 0, 0))
    hidden = columns.index("cost") if made.is_free else None
    for index, column in enumerate(columns):
        if index != hidden:
            shown.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for step in [*made.steps, made.total]:
        shown.add_row(*(cell for index, cell in enumerate(step.cells()) if index != hidden))
    console = Console()
    console.print(shown)
    lines = [f"- {note}" for note in made.notes]
    if made.warnings:
        lines += ["", "warnings", *(f"- {warning.text} -> {warning.do}" for warning in made.warnings)]
    for line in lines:
        console.print(printable(line), markup=False, highlight=False)
    if made.launch:  # not wrapped: its lines are commands
        print("\n" + "\n".join(printable(line) for line in made.launch.splitlines()))


def _write_launch_file(pipeline: Pipeline, name: str) -> None:
    from pathlib import Path

    from llmdistill.errors import UsageError
    from llmdistill.run.files import write_text
    from llmdistill.run.progress import say
    from llmdistill.train.nodes import launch_file

    if pipeline.train.num_nodes == 1:
        advice = "set train.num_nodes, train.num_processes and train.main_address"
        raise UsageError("training is on one machine, which needs no file", where="--launch-file", do=advice)
    write_text(Path(name), launch_file(pipeline.train))
    say(f"wrote {name}")
