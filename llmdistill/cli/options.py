"""Arguments and options that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

PipelineFile = Annotated[str, typer.Argument(metavar="PIPELINE", help="Pipeline file, e.g. pipelines/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.epochs=2.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do stages over whose settings changed (old results are kept).")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask again for records that got no answer.")]
MaxCost = Annotated[float | None, typer.Option("--max-cost", metavar="USD", help="Stop before the run has cost more.")]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", metavar="N", help="Stop before it has taken more tokens.")
]
NumProcesses = Annotated[
    int | None, typer.Option("--num-processes", metavar="N", help="Train in N processes of this machine, one a GPU.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def print_json(value: Any) -> None:
    """Write a value as JSON to stdout."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2)
    print()


def with_budget(
    overrides: list[str] | None, max_cost: float | None, max_tokens: int | None, sections: Sequence[str] = ("budget",)
) -> list[str]:
    """The overrides, with those of the budget flags in these sections."""
    limits = {"max_cost": max_cost, "max_tokens": max_tokens}
    given = [f"{name}={value}" for name, value in limits.items() if value is not None]
    return [*(overrides or []), *(f"{section}.{limit}" for section in sections for limit in given)]


def with_processes(overrides: list[str] | None, num_processes: int | None) -> list[str]:
    """The overrides, with that of `--num-processes`."""
    return [*(overrides or []), *([] if num_processes is None else [f"train.num_processes={num_processes}"])]
