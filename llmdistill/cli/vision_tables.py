"""What `llmdistill vision` prints: plans, tables of trained networks, of trials and of distilled sets."""

from __future__ import annotations

from typing import Any

from llmdistill.cli.options import print_json

SHOWN_TRIALS = 10


def print_plan(plan: Any, as_json: bool) -> None:
    """Each method's pieces of work and their time."""
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
    for number, name in enumerate(("method", plan.what, "left", "time of one", "time left")):
        shown.add_column(name, justify="right" if number else "left", overflow="fold")
    for step in plan.steps:
        times = ("", "") if step.seconds is None else (duration(step.seconds), duration(step.left * step.seconds))
        shown.add_row(Text(printable(step.name)), f"{step.number:,}", f"{step.left:,}", *times)
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
    from llmdistill.report.words import count, duration, points, with_spread

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


def print_sets(table: dict[str, Any]) -> None:
    """Test accuracies in percent of networks trained on each set; what is too wide for a terminal is in the report."""
    from rich.console import Console
    from rich.text import Text

    from llmdistill.vision.dd.cells import across_cells, main_cells, measure_cells

    console = Console()
    title = table["evaluation"]["title"]
    console.print(Text(f"test accuracy of networks trained on each set, protocol {title}, {table['protocol']}"))
    headings = ["method", "a class", "test, %", "of full, %", "floats", "time"]
    console.print(_sets_table(headings, main_cells(table)))
    for headings, rows in (measure_cells(table), across_cells(table)):
        if rows:
            console.print()
            console.print(_sets_table(headings, rows))


def _sets_table(headings: list[str], rows: list[list[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from llmdistill.cli.inspect import printable

    shown = Table(box=None, padding=(0, 1, 0, 0))
    for number, name in enumerate(headings):
        shown.add_column(Text(printable(name)), justify="right" if number else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    return shown
