"""`llmdistill generate|filter|curate|train|evaluate|report`: one stage of a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from llmdistill.cli.options import AsJson, Fresh, Overrides, PipelineFile, print_json

HELP = {
    "generate": "Read the prompts and ask the teacher for a rationale and an answer to each.",
    "filter": "Keep the answers that pass the format checks and the judge.",
    "curate": "Remove copies and choose a small, diverse training set.",
    "train": "Train the student by SFT or by distilling the teacher's distribution.",
    "evaluate": "Compare student, untrained student and teacher on held-out prompts.",
    "report": "Write one HTML page about the run.",
}


def command(name: str) -> Callable[..., None]:
    """The command function of a stage. It returns at once when the stage is done."""

    def stage(pipeline: PipelineFile, set_: Overrides = None, fresh: Fresh = False, as_json: AsJson = False) -> None:
        from llmdistill.cli.tables import print_comparison
        from llmdistill.pipeline_file import load_pipeline
        from llmdistill.stages import run_stages

        names = ["prompts", "generate"] if name == "generate" else [name]
        manifest = run_stages(load_pipeline(pipeline, set_ or []), names, fresh=fresh)[name]
        if as_json:
            print_json(asdict(manifest))
        elif name == "evaluate":
            print_comparison(manifest.metrics["table"])

    return stage
