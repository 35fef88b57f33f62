"""What the last refresh came to, in `<run>/refresh/status.json`: for monitoring, and for whoever starts the next.

    {"time", "command", "exit_code", "outcome", "message", "version", "planned"}

`planned` is the firing it was started for, if a daemon started it. The file is written whole or not at all.
"""

from __future__ import annotations

import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.errors import DamagedError
from llmdistill.run.files import make_dir, read_json, write_json
from llmdistill.schedule.webhook import tell

if TYPE_CHECKING:
    from llmdistill.config import Pipeline

PLANNED = "LLMDISTILL_FIRING"
"""Environment variable through which the daemon says for which planned time it starts a refresh."""

LATER = 75
"""Exit code of a refresh that has to come again: another process works on the run, or a server does not answer."""


def status_path(run_path: Path) -> Path:
    """The status file of a run."""
    return run_path / "refresh" / "status.json"


def read_status(run_path: Path) -> dict[str, Any] | None:
    """The last status; None before the first refresh."""
    path = status_path(run_path)
    return read_json(path) if path.exists() else None


def failed(exit_code: int | None) -> bool:
    """Whether somebody has to look: a refused promotion counts, one that comes again later does not."""
    return exit_code not in (None, 0, LATER)


def report_outcome(pipeline: Pipeline, exit_code: int, outcome: str, message: str, version: int | None = None) -> None:
    """Write the status of the refresh that this process ran, and tell the webhook if there is one.

    Args:
        outcome: in a word: "promoted", "refused", "nothing_new", "failed", ...
        message: one line.
        version: the version that came of it.

    Raises:
        DiskError: the file cannot be written. A webhook that fails is only said.
    """
    command = _without_keys(shlex.join(["llmdistill", *sys.argv[1:]]))
    report(
        pipeline.run_path,
        pipeline.name,
        pipeline.schedule.webhook_env,
        {"command": command, "exit_code": exit_code, "outcome": outcome, "message": message, "version": version},
    )


def report(run_path: Path, name: str, webhook_env: str | None, row: dict[str, Any]) -> None:
    """As `report_outcome`, of a refresh that another process ran.

    Args:
        row: `command`, `exit_code`, `outcome`, `message` and `version`.
    """
    before = _code_before(run_path)
    make_dir(status_path(run_path).parent)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    message = " ".join(_without_keys(str(row["message"])).split())
    write_json(status_path(run_path), {"time": now, **row, "message": message, "planned": os.environ.get(PLANNED)})
    tried_again = row["exit_code"] == before == LATER  # which may happen every few minutes
    if webhook_env and not tried_again:
        told = {key: row[key] for key in ("version", "outcome", "exit_code")}
        tell(webhook_env, {"pipeline": name, **told, "message": message, "report": _page(run_path, row["version"])})


def _without_keys(text: str) -> str:
    from llmdistill.pipeline_file import without_keys  # every firing of a daemon imports this module

    return without_keys(text)


def _code_before(run_path: Path) -> int | None:
    try:
        return (read_status(run_path) or {}).get("exit_code")
    except (DamagedError, AttributeError):  # it is about to be written anew
        return None


def _page(run_path: Path, version: int | None) -> str | None:
    """The report of a version, if it has one."""
    if version is None:
        return None
    folder = run_path / "refresh" / f"{version:04d}" if version else run_path
    page = folder / "report" / "index.html"
    return os.path.abspath(page) if page.exists() else None
