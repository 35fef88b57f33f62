"""`llmdistill inspect`: look at records of any stage, and at what the student is trained on."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmdistill.cli.options import AsJson, Overrides, PipelineFile, print_json


def inspect(
    pipeline: PipelineFile,
    set_: Overrides = None,
    stage: Annotated[str, typer.Option(help="Stage whose records to show.")] = "curate",
    rejects: Annotated[bool, typer.Option("--rejects", help="Show what the stage dropped.")] = False,
    where: Annotated[list[str] | None, typer.Option(help="Condition, e.g. 'score<3' or 'answer~pizza'.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="Number of records to show.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="Prompt and answer in two columns.")] = False,
    masks: Annotated[bool, typer.Option("--masks", help="Show the exact tokens the student is trained on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at records of any stage, or at the tokens that are trained."""
    from llmdistill.inspection import matching, read_rows
    from llmdistill.inspection import sample as draw
    from llmdistill.pipeline_file import load_pipeline
    from llmdistill.run.progress import say

    settings = load_pipeline(pipeline, set_ or [])
    found = matching(read_rows(settings.run_path, stage, rejects), where or [])
    rows = draw(found, sample, seed)
    say(f"{len(rows)} of {len(found):,} records of {stage}")
    if masks:
        from llmdistill.train.preview import previews

        _print_masks(previews(rows, settings), as_json)
    elif as_json:
        print_json(rows)
    elif side_by_side:
        _print_columns(rows)
    else:
        _print_rows(rows)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.text import Text

    from llmdistill.record import from_row

    console = Console()
    for row in rows:
        record = from_row(row)
        console.rule(Text(_heading(row)), align="left")
        for label, text in (("prompt", record.question), ("rationale", record.rationale), ("answer", record.answer)):
            if text:
                console.print(Text(f"{label}: ", style="bold"), end="")
                console.print(Text(printable(text)))


def _heading(row: dict[str, Any]) -> str:
    from llmdistill.record import from_row

    score = from_row(row).score
    reject = row.get("reject") or {}
    parts = [row["id"], f"score {score:.2f}" if score is not None else "", reject.get("reason"), reject.get("detail")]
    return printable("  ".join(part for part in (*parts, reject.get("where")) if part))


def _print_columns(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from llmdistill.record import from_row

    shown = Table(show_lines=True)
    shown.add_column("prompt", ratio=1)
    shown.add_column("answer", ratio=1)
    for row in rows:
        record = from_row(row)
        shown.add_row(Text(printable(record.question)), Text(printable(record.reply)))
    Console().print(shown)


def _print_masks(previews: list[dict[str, Any]], as_json: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    if as_json:
        print_json(previews)
        return
    console = Console()
    for item in previews:
        console.rule(Text(item["id"]), align="left")
        if item.get("problem"):
            console.print(Text(f"not trained: {item['problem']}", style="red"))
            continue
        line = Text()
        for token in item["tokens"]:
            line.append(printable(token["text"]), style="bold green" if token["trained"] else "dim")
        console.print(line)
        console.print(Text(f"{item['num_trained']} of {len(item['tokens'])} tokens trained, end token {item['end']}"))


def printable(text: str) -> str:
    """Text without control characters, so that no data can drive the terminal."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable() or c == "\u3000"))
