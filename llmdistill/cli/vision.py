"""`llmdistill vision kd|search`: distillation of image networks."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmdistill.cli.options import AsJson, Overrides, PipelineFile, print_json

app = typer.Typer(help="Distil image networks.", rich_markup_mode=None)

PlanOnly = Annotated[
    bool, typer.Option("--plan", help="Show what would be trained and how long it takes, without doing it.")
]
SHOWN_TRIALS = 10


@app.command("kd")
def kd(pipeline: PipelineFile, set_: Overrides = None, plan: PlanOnly = False, as_json: AsJson = False) -> None:
    """Train a student by every method of a pipeline file, under one protocol, and compare."""
    from llmdistill.pipeline_file import load_as
    from llmdistill.run.progress import say
    from llmdistill.vision.kd.methods import KdPipeline
    from llmdistill.vision.kd.plan import plan_only
    from llmdistill.vision.kd.run import run

    settings = load_as(KdPipeline, pipeline, set_ or [])
    if plan:
        print_plan(plan_only(settings), as_json)
        return
    table = run(settings)
    if as_json:
        print_json(table)
    else:
        print_table(table)
    say(f"report: {settings.run_path / 'report' / 'index.html'}")


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


@app.callback()
def vision() -> None:
    """Distil image networks."""


def print_plan(plan: Any, as_json: bool) -> None:
    """Each method's trainings and their time."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from llmdistill.cli.inspect import printable
    from llmdistill.report.words import duration

    if as_json:
        print_json({**asdict(plan), "seconds": plan.seconds})
        return
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(("method", "trainings", "left", "time of one", "time left")):
        shown.add_column(name, justify="right" if number else "left", overflow="fold")
    for step in plan.steps:
        times = ("", "") if step.seconds is None else (duration(step.seconds), duration(step.left * step.seconds))
        shown.add_row(Text(printable(step.name)), f"{step.trainings:,}", f"{step.left:,}", *times)
    shown.add_row("in all", "", f"{sum(step.left for step in plan.steps):,}", "", duration(plan.seconds))
    console = Console()
    console.print(Text(printable(f"plan of {plan.name}, protocol {plan.protocol} -> {plan.run_dir}")))
    console.print(shown)


def print_table(table: dict[str, Any]) -> None:
    """Test accuracies in percent, and gains in points; fits 80 columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from llmdistill.cli.inspect import printable
    from llmdistill.report.words import count, duration

    shown = Table(box=None, padding=(0, 1, 0, 0))
    shown.add_column("method", overflow="fold")
    for name in ("test, %", "gain", "95 % interval", "time", "x plain", "size"):
        shown.add_column(name, justify="right", no_wrap=True)
    teacher = table["teacher"]
    time = duration(teacher["seconds"])
    shown.add_row("teacher", f"{100 * teacher['test']:.2f}", "", "", time, "", count(teacher["parameters"]))
    for row in table["rows"]:
        shown.add_row(Text(printable(row["method"])), *_cells(row))
    console = Console()
    seeds = f"{len(table['seeds'])} seed{'s' if len(table['seeds']) > 1 else ''}"
    console.print(Text(f"test accuracy, mean of {seeds}, protocol {table['protocol']}"))
    console.print(shown)
    if table["measures"]:
        console.print(_measures_table(table))
    for note in notes_of(table):
        console.print(Text(printable(note)))


def _cells(row: dict[str, Any]) -> list[str]:
    from llmdistill.report.words import count, duration
    from llmdistill.vision.kd.report import points, with_spread

    known = row["gain_low"] is not None
    return [
        with_spread(row["test"], row["test_sd"]),
        "" if row["gain"] is None else points(row["gain"], "+"),
        f"{points(row['gain_low'], '+')} to {points(row['gain_high'], '+')}" if known else "",
        duration(row["seconds"]),
        "" if row["times_plain"] is None else f"{row['times_plain']:.2f}",
        count(row["parameters"]),
    ]


def notes_of(table: dict[str, Any]) -> list[str]:
    """What methods report of themselves, and what has to be known to read the table rightly."""
    from llmdistill.vision.kd.report import own_measures
    from llmdistill.vision.kd.table import BASELINE

    notes = [f"{title}: {text}" for title, text in own_measures(table)]
    rows = [row for row in table["rows"] if row["gain"] is not None and row["against"] != BASELINE]
    notes += [f"{row['method']}: the gain is over {row['against']}" for row in rows]
    if len(table["seeds"]) < 2:
        notes.append("one seed: how much of a difference is chance is not known")
    return notes


def _measures_table(table: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from llmdistill.cli.inspect import printable
    from llmdistill.vision.kd.report import measure_heading, measured_cells

    shown = Table(box=None, padding=(0, 2, 0, 0))
    shown.add_column("measured", overflow="fold")
    for name in table["measures"]:
        shown.add_column(measure_heading(name), justify="right", no_wrap=True)
    for title, cells in measured_cells(table):
        shown.add_row(Text(printable(title)), *cells)
    return shown


def print_trials(result: dict[str, Any]) -> None:
    """The best trials, and the winner beside the best of what was set by hand."""
    from rich.console import Console
    from rich.text import Text

    from llmdistill.cli.inspect import printable
    from llmdistill.vision.kd.search import words_of

    counts = ", ".join(f"{result[f'num_{state}']} {state}" for state in ("finished", "pruned", "failed"))
    winner, by_hand = result["winner"], result["hand_set"]
    lines = [f"{result['num_trials']} trials: {counts}, {result['seconds']:,.1f} s"]
    lines += [f"  {row['number'] + 1:>4}  {words_of(row)}" for row in result["rows"][:SHOWN_TRIALS]]
    compared = "" if by_hand is None else f", best set by hand {by_hand['validation']:.2%} ({by_hand['title']})"
    lines += [f"winner: trial {winner['number'] + 1}, validation {winner['validation']:.2%}{compared}", ""]
    Console().print(Text("\n".join(map(printable, lines))))
