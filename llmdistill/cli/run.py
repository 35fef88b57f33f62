"""`llmdistill run`: all stages."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from llmdistill.cli.options import (
    AsJson,
    Fresh,
    MaxCost,
    MaxTokens,
    NumProcesses,
    Overrides,
    PipelineFile,
    RetryFailed,
    print_json,
    with_budget,
    with_processes,
)

if TYPE_CHECKING:
    from llmdistill.config import Pipeline


def run(
    pipeline: PipelineFile,
    set_: Overrides = None,
    fresh: Fresh = False,
    retry_failed: RetryFailed = False,
    max_cost: MaxCost = None,
    max_tokens: MaxTokens = None,
    num_processes: NumProcesses = None,
    as_json: AsJson = False,
) -> None:
    """Run every stage, from prompts to the report. The same command again goes on where it stopped."""
    from llmdistill.cli.tables import print_comparison
    from llmdistill.pipeline_file import load_pipeline
    from llmdistill.run.progress import say
    from llmdistill.stages import run_stages, stages_of

    overrides = with_processes(with_budget(set_, max_cost, max_tokens), num_processes)
    settings = load_pipeline(pipeline, overrides)
    manifests = run_stages(settings, stages_of(settings), fresh=fresh, retry_failed=retry_failed)
    if as_json:
        print_json({name: asdict(manifest) for name, manifest in manifests.items()})
    else:
        print_comparison(manifests["evaluate"].metrics["table"])
    say(f"report: {settings.run_path / 'report' / 'index.html'}")
    say_warnings(settings)


def say_warnings(pipeline: Pipeline) -> None:
    """One line on how many warnings the settings give; nothing when there are none."""
    from llmdistill.plan.preflight import setting_warnings
    from llmdistill.run.progress import say

    num = len(setting_warnings(pipeline))
    if num:
        counted = "1 warning" if num == 1 else f"{num} warnings"
        say(f"{counted} on these settings: llmdistill plan shows them, and so does the report")
