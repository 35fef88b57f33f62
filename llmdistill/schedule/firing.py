"""A process that carries out one firing: starts the refresh, waits for it, writes down how it ended.

    python -m llmdistill.schedule.firing ORDER        ORDER is the JSON of an `Order`

It outlives a daemon that is killed, so the end of a refresh is known to the next one. One firing of a run is carried
out at a time. A refresh that has to come again (exit code 75), and one that was stopped because the daemon was,
leave the firing open.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmdistill.errors import Interrupted, LlmdistillError
from llmdistill.run.files import make_dir, writing
from llmdistill.run.lock import locked
from llmdistill.run.progress import say
from llmdistill.run.signals import stopping_in_order
from llmdistill.schedule.firings import Firings, firings_path
from llmdistill.schedule.status import LATER, PLANNED, report, status_path

CANNOT_START = 127


@dataclass(frozen=True)
class Order:
    """What to carry out. Holds no key: it stands on a command line.

    Attributes:
        planned: key of the firing.
        command: of the refresh, begun in `folder`.
        log: file that its output goes to, beginning anew with each firing.
    """

    planned: str
    command: list[str]
    folder: str
    run_path: str
    log: str
    name: str
    webhook_env: str | None

    def argv(self) -> list[str]:
        """The command line of the process that carries it out."""
        return [sys.executable, "-m", __name__, json.dumps(asdict(self))]


def carry_out(order: Order) -> int:
    """Carry out a firing that has not ended yet; gives the exit code of the refresh.

    Raises:
        BusyError: another process carries one out.
    """
    run_path = Path(order.run_path)
    with locked(run_path / "refresh" / "firing"):
        log = Firings(firings_path(run_path))
        firing = log.get(order.planned)
        if firing is None or firing.ended is not None:
            return 0
        log.begin(order.planned, datetime.now(UTC))
        before = _stamp(run_path)
        exit_code = _refresh(order, first=firing.attempts == 0)
        if exit_code == LATER:
            return exit_code
        if _stamp(run_path) == before:
            _report(order, exit_code)
        log.end(order.planned, exit_code, datetime.now(UTC))
        return exit_code


def _refresh(order: Order, first: bool) -> int:
    """Run the refresh; a signal's number is told as shells do, 128 and more."""
    log = Path(order.log)
    make_dir(log.parent)
    with writing(log), open(log, "ab") as output:
        if first:
            output.truncate(0)
        try:
            child = subprocess.Popen(
                order.command,
                cwd=order.folder,
                env={**os.environ, PLANNED: order.planned},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            output.write(f"{order.command[0]}: {error.strerror}\n".encode())
            return CANNOT_START
    try:
        code = child.wait()
    except Interrupted:
        child.terminate()
        child.wait()
        raise
    return code if code >= 0 else 128 - code


def _stamp(run_path: Path) -> tuple[int, int] | None:
    """Changes whenever the status is written."""
    try:
        found = status_path(run_path).stat()
        return found.st_ino, found.st_mtime_ns
    except OSError:
        return None


def _report(order: Order, exit_code: int) -> None:
    """Say in its stead what a refresh did not live to say."""
    said = f"it ended with exit code {exit_code} and left no status; its last words: {_last_line(Path(order.log))}"
    row: dict[str, Any] = {
        "command": shlex.join(order.command),
        "exit_code": exit_code,
        "outcome": "failed" if exit_code else "done",
        "message": said if exit_code else "",
        "version": None,
    }
    os.environ[PLANNED] = order.planned
    report(Path(order.run_path), order.name, order.webhook_env, row)


def _last_line(log: Path) -> str:
    try:
        with open(log, "rb") as handle:
            handle.seek(max(0, log.stat().st_size - 2000))
            words = handle.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return "(none)"
    return words[-1].strip()[:300] if words else "(none)"


def _main() -> int:
    try:
        with stopping_in_order():
            return carry_out(Order(**json.loads(sys.argv[1])))
    except LlmdistillError as error:
        say(f"error: {error}")
        return error.exit_code
    except Interrupted as stop:
        return stop.exit_code


if __name__ == "__main__":
    sys.exit(_main())
