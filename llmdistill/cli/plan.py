"""`llmdistill plan`: what a run would do, without doing it."""

from __future__ import annotations

from typing import Annotated

import typer

from llmdistill.cli.options import AsJson, Overrides, PipelineFile, print_json

Sample = Annotated[
    int,
    typer.Option(
        "--sample", metavar="N", min=0, help="Ask the teacher N prompts to measure; the run reuses the answers."
    ),
]


def plan(pipeline: PipelineFile, set_: Overrides = None, sample: Sample = 0, as_json: AsJson = False) -> None:
    """Check a pipeline file and show what a run would do: records, requests, tokens, money, disk, time."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from llmdistill.cli.inspect import printable
    from llmdistill.pipeline_file import load_pipeline
    from llmdistill.plan import make_plan

    made = make_plan(load_pipeline(pipeline, set_ or []), sample)
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
