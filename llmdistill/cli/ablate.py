"""`llmdistill ablate`: the same student under several settings, side by side."""

from __future__ import annotations

from typing import Any

from llmdistill.cli.options import (
    AsJson,
    Fresh,
    MaxCost,
    MaxTokens,
    Overrides,
    PipelineFile,
    print_json,
    with_budget,
)


def ablate(
    pipeline: PipelineFile,
    set_: Overrides = None,
    fresh: Fresh = False,
    max_cost: MaxCost = None,
    max_tokens: MaxTokens = None,
    as_json: AsJson = False,
) -> None:
    """Train the same student under each variant of `ablation.vary` and each seed, and compare them."""
    from llmdistill.ablate.run import ablate as compare
    from llmdistill.pipeline_file import load_pipeline

    table = compare(load_pipeline(pipeline, with_budget(set_, max_cost, max_tokens)), fresh=fresh)
    if as_json:
        print_json(table)
    else:
        print_table(table)


def print_table(table: dict[str, Any]) -> None:
    """The variants, best first, and whether the difference to the baseline is clear."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from llmdistill.cli.inspect import printable

    shown = Table(box=None, padding=(0, 1, 0, 0))
    shown.add_column("variant", overflow="fold")
    for name in ("mean ± sd", "difference", "95 % interval"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    for row in table["rows"]:
        shown.add_row(printable(row["variant"]), *_cells(row, table["baseline"]))
    console = Console()
    console.print(Text(heading_of(table)))
    console.print(shown)
    for note in notes_of(table):
        console.print(Text(printable(note)))


def _cells(row: dict[str, Any], baseline: str) -> tuple[str, str, str, str]:
    mean = f"{row['mean']:.3f}" + ("" if row["sd"] is None else f" ± {row['sd']:.3f}")
    if row["variant"] == baseline:
        return mean, "", "", "baseline"
    difference = "" if row["difference"] is None else f"{row['difference']:+.3f}"
    if row["difference_low"] is None:
        return mean, difference, "", ""
    interval = f"{row['difference_low']:+.3f} to {row['difference_high']:+.3f}"
    words = {True: "better", False: "worse", None: "no clear difference"}
    return mean, difference, interval, words[row["better"]]


def heading_of(table: dict[str, Any]) -> str:
    """What the numbers are."""
    return f"{table['measure']} on {table['held_out']:,} held-out prompts ({table['unit']})"


def notes_of(table: dict[str, Any]) -> list[str]:
    """What has to be known to read the table rightly."""
    notes = []
    if table["finished"] < table["planned"]:
        notes.append(f"{table['finished']} of {table['planned']} trainings are done: the same command goes on")
    if all(len(row["seeds"]) < 2 for row in table["rows"]):
        notes.append("one seed: how much of a difference is chance is not known")
    return notes + [f"{row['variant']}: {row['note']}" for row in table["rows"] if row["note"]]
