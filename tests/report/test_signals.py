"""The report of a run that stores signals: their time is shown, and only where the run has them."""

from __future__ import annotations

import pytest

from llmdistill.config import Signals
from llmdistill.errors import StageError
from llmdistill.report.stage import run
from llmdistill.run.manifest import Counts, Usage
from llmdistill.run.stage import Stage, begin
from tests.report.run_dirs import bare_run, pipeline

WITH = {"signals": Signals()}


def finish_signals(run_dir) -> None:
    stage = begin(run_dir, "signals", {"made": "by hand"})
    assert isinstance(stage, Stage)
    stage.finish(Counts(3, 3, 0), Usage(3, 98_765, 0, 61.0))


def page_of(run_dir, **changes) -> str:
    run(pipeline(run_dir, **changes))
    return (run_dir / "report" / "index.html").read_text("utf-8")


def test_a_run_with_signals_shows_what_they_took_and_waits_for_them(tmp_path):
    bare_run(tmp_path)
    with pytest.raises(StageError, match="signals is not finished yet"):
        run(pipeline(tmp_path, **WITH))
    finish_signals(tmp_path)
    assert "98,765" in page_of(tmp_path, **WITH)


def test_signals_of_an_earlier_run_are_not_shown_where_there_are_none_now(tmp_path):
    bare_run(tmp_path)
    before = page_of(tmp_path)
    finish_signals(tmp_path)
    assert page_of(tmp_path) == before
