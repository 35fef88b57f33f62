"""`llmdistill inspect`: look at records of any stage, and at what the student is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmdistill.cli.options import AsJson, Overrides, PipelineFile, print_json

if TYPE_CHECKING:
    from rich.text import Text

_MOST_COPIES = 8
_MOST_CHARS = 600


def inspect(
    pipeline: PipelineFile,
    set_: Overrides = None,
    stage: Annotated[str, typer.Option(help="Stage whose records to show.")] = "curate",
    rejects: Annotated[bool, typer.Option("--rejects", help="Show what the stage dropped.")] = False,
    where: Annotated[list[str] | None, typer.Option(help="Condition, e.g. 'score<3' or 'answer~pizza'.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="Number of records to show.")] = 5,
    seed: Annotated[int | None, typer.Option(help="Seed of the sample.")] = None,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="Prompt and answer in two columns.")] = False,
    masks: Annotated[bool, typer.Option("--masks", help="Show the exact tokens the student is trained on.")] = False,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Show groups of copies side by side, those that differ most first.")
    ] = False,
    id_: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Why the record whose id begins so was kept or dropped.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at records of any stage, at copies side by side, or at the tokens that are trained."""
    from llmdistill.inspect.rows import matching, read_rows
    from llmdistill.inspect.rows import sample as draw
    from llmdistill.pipeline_file import load_pipeline
    from llmdistill.run.progress import say

    settings = load_pipeline(pipeline, set_ or [])
    if id_ is not None:
        _print_explanation(settings.run_path, id_, as_json)
        return
    if duplicates:
        _print_duplicates(settings.run_path, stage, where or [], sample, seed, as_json)
        return
    found = matching(read_rows(settings.run_path, stage, rejects), where or [])
    rows = draw(found, sample, seed or 0)
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
        reject = row.get("reject") or {}
        _print_labelled([("why", reject.get("detail")), ("where", reject.get("where"))])
        _print_labelled([("prompt", record.question), ("rationale", record.rationale), ("answer", record.answer)])


def _print_labelled(lines: Sequence[tuple[str, str | None]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for label, text in lines:
        if text:
            console.print(Text.assemble((f"{label}: ", "bold"), printable(text)))


def _heading(row: dict[str, Any]) -> str:
    from llmdistill.record import from_row

    score = from_row(row).score
    reject = row.get("reject") or {}
    parts = [row["id"], f"score {score:.2f}" if score is not None else "", reject.get("reason")]
    return printable("  ".join(part for part in parts if part))


def _print_explanation(run_dir: Path, prefix: str, as_json: bool) -> None:
    from llmdistill.inspect.explanation import explain, in_words

    explained = explain(run_dir, prefix)
    if as_json:
        print_json(explained)
    else:
        _print_labelled(in_words(explained))


def _print_duplicates(
    run_dir: Path, stage: str, conditions: list[str], num: int, seed: int | None, as_json: bool
) -> None:
    from llmdistill.errors import UsageError
    from llmdistill.inspect.explanation import groups_of_copies
    from llmdistill.run.progress import say

    if stage != "curate":
        raise UsageError("only curate drops copies", where=f"--stage {stage}", do="leave --stage out")
    most = None if as_json else _MOST_COPIES
    groups, found = groups_of_copies(run_dir, conditions, num, seed, most)
    say(f"{len(groups)} of {found:,} groups of copies")
    if as_json:
        print_json(groups)
        return
    for group in groups:
        _print_group(group)


def _print_group(group: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    kept, copies = group["kept"], group["copies"]
    shown = Table(show_lines=True, expand=True)
    shown.add_column(Text(printable(f"original: {kept['reason']}")), ratio=1, overflow="fold")
    dropped = f"dropped: {group['num_copies']:,}"
    more = group["num_copies"] - len(copies)
    shown.add_column(dropped + (f", the {len(copies)} most similar" if more else ""), ratio=1, overflow="fold")
    kept_text = _shortened(kept["question"])
    left = Text.assemble((f"{kept['id']}\n", "dim"), kept_text)
    for copy in copies:
        shown.add_row(left, _copy(copy, kept["id"], kept_text))
        left = Text("")
    Console().print(shown)


def _copy(copy: dict[str, Any], head: str, kept_text: str) -> Text:
    """A copy's text; what the kept one has otherwise is set off."""
    from rich.text import Text

    from llmdistill.inspect.copies import differing

    likeness = "?" if copy["similarity"] is None else f"{copy['similarity']:.2f}"
    other = "" if copy["duplicate_of"] == head else f" (like {copy['duplicate_of'][:8]})"
    text = Text.assemble(
        (printable(f"{copy['id']}\n"), "dim"), (printable(f"{copy['reason']} {likeness}{other}\n"), "bold")
    )
    for piece, differs in differing(kept_text, _shortened(copy["question"])):
        text.append(piece, style="yellow" if differs else "")
    return text


def _shortened(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]} [...]"


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
        for label, text in _masks_of(item):
            console.print(Text.assemble((f"{label}: ", "bold"), text))


def _masks_of(item: dict[str, Any]) -> list[tuple[str, Text]]:
    """What is shown of one record's mask, line by line; the words tell what is trained, not the colours alone."""
    from rich.text import Text

    tokens = item["tokens"]
    told = [(("trained" if trained else "read"), _run(tokens, trained)) for trained in (False, True)]
    lines = [("teacher reads", _run(item["asked"]))] if item.get("asked") else []
    lines += [(label, text) for label, text in told if text]
    if item.get("problem"):
        lines.append(("not trained", Text(printable(item["problem"]), style="red")))
    else:
        lines.append(("mask", Text(f"{item['num_trained']} of {len(tokens)} tokens trained, end token {item['end']}")))
    return lines + [("note", Text(printable(note["text"]), style="dim")) for note in item["notes"]]


def _run(tokens: list[dict[str, Any]], trained: bool = False) -> Text:
    """The text of those tokens that are trained, or are not; a letter may be cut into several."""
    from rich.text import Text

    text = "".join(token["text"] for token in tokens if token.get("trained", False) == trained)
    return Text(printable(text), style="bold green" if trained else "dim")


def printable(text: str) -> str:
    """Text without control characters, so that no data can drive the terminal."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable() or c == "\u3000"))
