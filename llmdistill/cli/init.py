"""`llmdistill init`: a commented pipeline file for the user's own job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = Path("pipeline.yaml"),
    prompts: Annotated[str, typer.Option(help="Your prompts: .jsonl, .json or .parquet.")] = "prompts.jsonl",
    language: Annotated[str, typer.Option(help="Language of the prompts: en or ko.")] = "en",
) -> None:
    """Write a commented pipeline file for your own job."""
    from llmdistill.errors import UsageError
    from llmdistill.pipeline_file import shipped_root
    from llmdistill.run.files import write_text
    from llmdistill.run.progress import say
    from llmdistill.templates import substitute

    if language not in ("en", "ko"):
        raise UsageError(f"--language is {language!r}", do="there are en and ko")
    if path.exists():
        raise UsageError("this file exists already", where=path, do="choose another name")
    text = (shipped_root() / "pipelines" / "template.yaml").read_text("utf-8")
    quoted = {"name": path.stem, "prompts": prompts}  # JSON strings are YAML strings, whatever is in them
    values = {key: json.dumps(value, ensure_ascii=False) for key, value in quoted.items()} | {"language": language}
    write_text(path, substitute(text, values) + "\n")
    say(f"wrote {path}; next: llmdistill plan {path}")
