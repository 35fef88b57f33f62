"""Arguments and options that several commands share."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

PipelineFile = Annotated[str, typer.Argument(metavar="PIPELINE", help="Pipeline file, e.g. pipelines/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.epochs=2.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do stages over whose settings changed (old results are kept).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def print_json(value: Any) -> None:
    """Write a value as JSON to stdout."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2)
    print()
