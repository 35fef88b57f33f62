"""`llmdistill vision kd|dd`: distillation of image networks and of image data sets."""

from __future__ import annotations

from typing import Any

import typer

from llmdistill.cli.options import AsJson, Overrides, PipelineFile, print_json

app = typer.Typer(help="Distil image networks and image data sets.", rich_markup_mode=None)


@app.command("kd")
def kd(pipeline: PipelineFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Train a student by every method of a pipeline file, under one protocol, and compare."""
    from llmdistill.pipeline_file import load_as
    from llmdistill.vision.kd.methods import KdPipeline
    from llmdistill.vision.kd.run import run

    table = run(load_as(KdPipeline, pipeline, set_ or []))
    if as_json:
        print_json(table)
    else:
        print_table(table)


@app.callback()
def vision() -> None:
    """Distil image networks and image data sets."""


def print_table(table: dict[str, Any]) -> None:
    """Test accuracies in percent, and gains over plain training in points."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, padding=(0, 1, 0, 0))
    for number, name in enumerate(("method", "test accuracy", "gain", "seconds", "parameters")):
        shown.add_column(name, justify="right" if number else "left", no_wrap=True)
    shown.add_row("teacher", f"{100 * table['teacher']:.2f}", "", "", "")
    for row in table["rows"]:
        cells = (_percent(row, "test"), _percent(row, "gain", "+"), f"{row['seconds']:,.1f}", f"{row['parameters']:,}")
        shown.add_row(row["method"], *cells)
    Console().print(shown)


def _percent(row: dict[str, Any], name: str, sign: str = "") -> str:
    if row[name] is None:
        return ""
    spread = "" if row[f"{name}_sd"] is None else f" ± {100 * row[f'{name}_sd']:.2f}"
    return f"{100 * row[name]:{sign}.2f}{spread}"
