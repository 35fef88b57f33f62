"""`llmdistill plan`: what a run would do, without doing it."""

from __future__ import annotations

from llmdistill.cli.options import AsJson, Overrides, PipelineFile, print_json


def plan(pipeline: PipelineFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Check a pipeline file and show what a run would do: records, requests, tokens, disk, time."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from llmdistill.pipeline_file import load_pipeline
    from llmdistill.plan import make_plan

    made = make_plan(load_pipeline(pipeline, set_ or []))
    if as_json:
        print_json(asdict(made))
        return
    shown = Table(title=f"plan of {made.name} -> {made.run_dir}", title_justify="left")
    for column in ("stage", "records", "requests", "tokens in", "tokens out", "disk", "time"):
        shown.add_column(column, justify="left" if column == "stage" else "right")
    for step in made.steps:
        shown.add_row(*step.cells())
    console = Console()
    console.print(shown)
    for note in made.notes:
        console.print(f"- {note}", markup=False, highlight=False)
