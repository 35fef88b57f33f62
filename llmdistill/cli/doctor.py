"""`llmdistill doctor`: is this machine ready."""

from __future__ import annotations

from typing import Annotated

import typer

from llmdistill.cli.options import AsJson, print_json


def doctor(
    pipeline: Annotated[str | None, typer.Argument(metavar="PIPELINE", help="Check this pipeline's needs too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check versions, devices, disk, and whether the models of a pipeline can be found."""
    from llmdistill.doctor import examine
    from llmdistill.errors import StageError
    from llmdistill.pipeline_file import load_pipeline

    findings = examine(load_pipeline(pipeline) if pipeline else None)
    if as_json:
        print_json([{"what": finding.what, "ok": finding.ok, "found": finding.found} for finding in findings])
    else:
        for finding in findings:
            print(f"{'ok ' if finding.ok else 'BAD'}  {finding.what:<24} {finding.found}")
    bad = [finding.what for finding in findings if not finding.ok]
    if bad:
        raise StageError(f"not ready: {', '.join(bad)}", do="mend what is marked BAD above")
