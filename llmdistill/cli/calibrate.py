"""`llmdistill calibrate`: how far the judge agrees with people, and the threshold for a wanted precision."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from llmdistill.cli.options import AsJson, MaxCost, MaxTokens, Overrides, PipelineFile, print_json, with_budget

GoldFile = Annotated[
    str | None, typer.Option("--gold", metavar="FILE", help="Judged answers, if not filter.judge.calibration.gold.")
]
Precision = Annotated[
    float | None,
    typer.Option("--precision", metavar="SHARE", min=0.0, max=1.0, help="Share of kept answers that should be good."),
]


def calibrate(
    pipeline: PipelineFile,
    gold: GoldFile = None,
    precision: Precision = None,
    set_: Overrides = None,
    max_cost: MaxCost = None,
    max_tokens: MaxTokens = None,
    as_json: AsJson = False,
) -> None:
    """Measure the judge against answers that people have judged, and find the threshold to filter at."""
    from llmdistill.filter.calibration import FILE_NAME, STAGE
    from llmdistill.filter.calibration import calibrate as find
    from llmdistill.pipeline_file import load_pipeline
    from llmdistill.run.lock import locked
    from llmdistill.run.progress import say

    settings = load_pipeline(pipeline, _overrides(gold, precision, with_budget(set_, max_cost, max_tokens)))
    with locked(settings.run_path):
        found = find(settings)
    say(f"the calibration is in {settings.run_path / STAGE / FILE_NAME}")
    if as_json:
        print_json(found)
    else:
        _print_table(found)


def _overrides(gold: str | None, precision: float | None, others: list[str]) -> list[str]:
    """The overrides, with those of the flags; JSON is YAML that no file name can break out of."""
    flags = {"gold": gold, "precision": precision}
    given = {name: json.dumps(value, ensure_ascii=False) for name, value in flags.items() if value is not None}
    return [*others, *(f"filter.judge.calibration.{name}={value}" for name, value in given.items())]


def _print_table(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from llmdistill.cli.inspect import printable
    from llmdistill.report.judging import view_of

    view = view_of(found)
    shown = Table()
    for name in ("", "value", "95 % interval"):
        shown.add_column(name, justify="right" if name else "left")
    shown.add_row("threshold", view.threshold, "")
    for measure in view.measures:
        shown.add_row(measure.label, measure.value, measure.interval)
    console = Console()
    for judge, rubric in view.judges:
        console.print(Text(printable(f"judge {judge}, rubric {rubric}")))
    console.print(Text(printable(f"{view.gold_file}: {view.answers}")))
    console.print(Text(printable(f"judgements: {view.outcomes}")))
    console.print(shown)
    console.print(Text(view.note))
