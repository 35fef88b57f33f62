"""`llmdistill export`: the training data in a form that other tools read."""

from __future__ import annotations

from typing import Annotated

import typer

from llmdistill.cli.options import Overrides, PipelineFile


def export(
    pipeline: PipelineFile,
    to: Annotated[str, typer.Option(metavar="FILE", help="A .jsonl or .parquet file; - is stdout.")],
    format_: Annotated[
        str, typer.Option("--format", metavar="FORM", help="messages, prompt-completion, alpaca or sharegpt.")
    ] = "messages",
    stage: Annotated[str, typer.Option(help="Stage whose answers: generate, filter or curate.")] = "curate",
    set_: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write prompts and answers to a file for another trainer; such a file can be imported again."""
    import sys
    from pathlib import Path

    from llmdistill.export.data import check_target, records_of, write_file, write_lines
    from llmdistill.pipeline_file import load_pipeline
    from llmdistill.run.progress import say

    if to != "-":
        check_target(Path(to), force)
    records = records_of(load_pipeline(pipeline, set_ or []).run_path, stage, format_)
    if to == "-":
        num_rows = write_lines(records, format_, sys.stdout.buffer)
    else:
        num_rows = write_file(records, format_, Path(to))
    say(f"{num_rows:,} rows of {stage} in the form {format_}" + ("" if to == "-" else f" -> {to}"))
