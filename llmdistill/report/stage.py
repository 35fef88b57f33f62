"""The stage `report`: made from what the other stages left on disk.

<run>/report/index.html         the page
<run>/report/dataset_card.md    what to publish beside the training set
<run>/report/model_card.md      what to publish beside the student
"""

from __future__ import annotations

from llmdistill.config import Pipeline
from llmdistill.report.ablation import FILE as ABLATION
from llmdistill.report.cards import DATASET_CARD, MODEL_CARD, dataset_card, model_card, terms_digest
from llmdistill.report.data import STAGES, answerers, read_run
from llmdistill.report.judging import FILE as CALIBRATION
from llmdistill.report.page import render
from llmdistill.report.refreshing import FILE as REFRESH
from llmdistill.run.digest import Parts, digest_of, flatten
from llmdistill.run.files import sha256_of, write_text
from llmdistill.run.manifest import FILE_NAME, Counts, Manifest
from llmdistill.run.stage import begin, inputs_of

PAGE = "index.html"


def run(pipeline: Pipeline, *, fresh: bool = False) -> Manifest:
    """Write the page and the cards. The same run directory and pipeline give the same bytes.

    Raises:
        StageError: a stage that the page shows is not finished.
        DamagedError: a file of the run directory cannot be read.
    """
    files = {"calibration": CALIBRATION, "ablation": ABLATION, "refresh": REFRESH}
    beside = {name: pipeline.run_path / file for name, file in files.items()}
    stages = [name for name in STAGES if name != "signals" or pipeline.signals is not None]
    parts: Parts = {
        **flatten(pipeline.report.digest_view(), "report."),
        **inputs_of(pipeline.run_path, *stages),
        # The page shows times, versions and every setting, also those that change no stage's result.
        **{f"shown.{name}": sha256_of(pipeline.run_path / name / FILE_NAME) for name in stages},
        **{f"shown.{name}": sha256_of(path) if path.exists() else None for name, path in beside.items()},
        "shown.config": digest_of(pipeline.model_dump(mode="json")),
        "shown.terms": digest_of(terms_digest(pipeline, answerers(pipeline.run_path))),
    }
    stage = begin(pipeline.run_path, "report", parts, fresh=fresh)
    if isinstance(stage, Manifest):
        return stage
    data = read_run(pipeline.run_path, pipeline.report.samples, stages)
    texts = {
        PAGE: render(pipeline, data),
        DATASET_CARD: dataset_card(pipeline, data),
        MODEL_CARD: model_card(pipeline, data),
    }
    for name, text in texts.items():
        write_text(stage.dir / name, text)
    return stage.finish(Counts(0, 0, 0), more_outputs=[stage.dir / name for name in texts])
