"""What is run when, whoever runs it: the refresh of one pipeline file from one folder."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmdistill.config import Pipeline
from llmdistill.errors import UsageError
from llmdistill.schedule.cron import Cron, parse_cron, zone_of

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Job:
    """A refresh and its schedule.

    Attributes:
        name: the pipeline's.
        folder: working directory of the command, absolute.
        arguments: what follows `llmdistill` on the command line.
        run_path: run directory of version 0, absolute.
        timezone: of the cron line; None is the machine's.
        webhook_env: environment variable with the address that is told.
    """

    name: str
    cron: Cron
    timezone: str | None
    folder: Path
    arguments: tuple[str, ...]
    run_path: Path
    webhook_env: str | None = None

    @property
    def command(self) -> list[str]:
        """The command, by this very interpreter."""
        return [os.path.abspath(sys.executable), "-m", "llmdistill", *self.arguments]

    @property
    def label(self) -> str:
        """Names this job among others; letters, digits and `-`, the same for the same folder and arguments."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:24].strip("-")
        known_by = "\0".join([str(self.folder), *self.arguments])
        digest = hashlib.sha256(known_by.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return "-".join(part for part in ("llmdistill", plain, digest) if part)

    @property
    def log_path(self) -> Path:
        """What the last refresh printed."""
        return self.run_path / "refresh" / "last.log"


def job_of(pipeline: Pipeline, file: str, overrides: Sequence[str] = (), cron: str | None = None) -> Job:
    """The job of a pipeline file that is refreshed from the working directory.

    Args:
        file: as a person wrote it on the command line, with the `overrides` of its `--set`.
        cron: in place of the one in `schedule.cron`.

    Raises:
        ConfigError: the cron line or the time zone is wrong.
        UsageError: a path cannot stand in a line of text.
    """
    settings = pipeline.schedule
    parsed = parse_cron(settings.cron) if cron is None else parse_cron(cron, "--cron")
    zone_of(settings.timezone)
    arguments = ["refresh", file, *(word for override in overrides for word in ("--set", override))]
    folder = Path.cwd()
    for text in (str(folder), *arguments, str(pipeline.run_path), sys.executable):
        if _CONTROL.search(text):
            raise UsageError(f"{text!r} holds a line break or another control character", do="rename it")
    run_path = Path(os.path.abspath(pipeline.run_path))
    return Job(pipeline.name, parsed, settings.timezone, folder, tuple(arguments), run_path, settings.webhook_env)


def config_home() -> Path:
    """Where programs of this user keep their settings."""
    given = os.environ.get("XDG_CONFIG_HOME")
    return Path(given) if given and os.path.isabs(given) else Path.home() / ".config"


def keys_path() -> Path:
    """The file of `NAME=value` lines from which a scheduled refresh takes its keys, where there is one."""
    return config_home() / "llmdistill" / "environment"
