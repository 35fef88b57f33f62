"""A job to schedule, without a pipeline file."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmdistill.schedule.cron import parse_cron
from llmdistill.schedule.job import Job

HOSTILE = '한글 50% of "q" it\'s $HOME `id` ;#'
"""A name that spaces, Hangul, per cent signs, quotes and everything a shell knows are in."""


def job(folder: Path, cron: str = "0 3 * * 1", *, file: str = "x.yaml", timezone: str | None = None) -> Job:
    return Job("weekly", parse_cron(cron), timezone, folder, ("refresh", file), folder / "run")


def needs_apscheduler() -> None:
    pytest.importorskip("apscheduler", reason="needs the extra schedule")
