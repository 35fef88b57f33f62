"""`llmdistill schedule PIPELINE --status`: how the last refresh ended, what runs now, when the next is due."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmdistill.errors import BusyError
from llmdistill.run.lock import locked
from llmdistill.schedule.cron import zone_of
from llmdistill.schedule.daemon import LOOK_SECONDS, lock_dir
from llmdistill.schedule.firings import Firings, firings_path
from llmdistill.schedule.job import Job
from llmdistill.schedule.status import failed, read_status
from llmdistill.schedule.times import Times, has_extra

NUM_NEXT = 3


def overview(job: Job) -> dict[str, Any]:
    """What there is to know, as plain data.

    Returns:
        `status` (the status file), `last` and `open` (firings of the daemon's log), `daemon` (whether one runs; None
        where none ever did), `owed` (planned times that no daemon took up), `next` (None without APScheduler), and
        `problem`, one line, None when all is well.
    """
    now = datetime.now(UTC)
    times = Times(job.cron, zone_of(job.timezone)) if has_extra() else None
    found: dict[str, Any] = {"status": read_status(job.run_path), "last": None, "open": None, "owed": None}
    found["daemon"] = None
    path = firings_path(job.run_path)
    if path.exists():
        log = Firings(path, read_only=True)
        last, unfinished = log.last(), log.unfinished()
        found["last"], found["open"] = last and asdict(last), unfinished and asdict(unfinished)
        found["daemon"] = _daemon_runs(job.run_path)
        owed = log.owed(times, now) if times else None
        found["owed"] = [moment.isoformat() for moment in owed] if owed else None
    found["next"] = None if times is None else _next(times, now)
    return {**found, "problem": _problem(found, now)}


def _next(times: Times, now: datetime) -> list[str]:
    found: list[datetime] = []
    for _ in range(NUM_NEXT):
        found.append(times.after(found[-1] if found else now))
    return [moment.astimezone(times.zone).isoformat() for moment in found]


def _daemon_runs(run_path: Path) -> bool:
    if not (lock_dir(run_path) / ".lock").exists():
        return False
    try:
        with locked(lock_dir(run_path)):
            return False
    except BusyError:
        return True


def _problem(found: dict[str, Any], now: datetime) -> str | None:
    """The status file is newer than the log where the refresh was run by hand, and older never."""
    status, last = found["status"], found["last"]
    code = status.get("exit_code") if status else last["exit_code"] if last else None
    if failed(code):
        said = f": {status['message']}" if status and status.get("message") else ""
        return f"the last refresh failed with exit code {code}{said}"
    if found["daemon"] is False and (found["open"] or found["owed"]):
        planned = found["open"]["planned"] if found["open"] else found["owed"][0]
        return f"no daemon runs, and the refresh of {planned} is owed"
    late = found["owed"] and (now - datetime.fromisoformat(found["owed"][0])).total_seconds() > 4 * LOOK_SECONDS
    if late and not found["open"]:
        return f"the daemon has not taken up the refresh of {found['owed'][0]}"
    return None


def lines(found: dict[str, Any]) -> list[str]:
    """The overview for a person."""
    status, last, unfinished = found["status"], found["last"], found["open"]
    shown = ["last    never"]
    if status:
        message = f": {status['message']}" if status.get("message") else ""
        shown = [f"last    {status['time']}  exit code {status['exit_code']}, {status['outcome']}{message}"]
    if last:
        missed = "" if last["first"] == last["planned"] else f", for all since {last['first']}"
        shown.append(f"fired   {last['planned']}{missed}  exit code {last['exit_code']}, ended {last['ended']}")
    if unfinished:
        shown.append(f"open    {unfinished['planned']}  begun {unfinished['attempts']} times, not ended")
    following = found["next"]
    shown.append(f"next    {', '.join(following)}" if following else "next    pip install 'llmdistill[schedule]' tells")
    if found["daemon"] is not None:
        shown.append(f"daemon  {'running' if found['daemon'] else 'not running'}")
    return shown
