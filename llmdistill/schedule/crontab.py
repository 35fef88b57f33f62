"""A line of the user's crontab, between two comments by which it is found again.

Cron neither catches up what it missed nor tries again what has to come later (exit code 75): the next firing does
both. It knows no time zone that every cron heeds, so another one than this machine's is refused.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from datetime import UTC, datetime, timedelta, tzinfo

from llmdistill.errors import ConfigError, StageError, UsageError
from llmdistill.schedule.cron import plain_fields, zone_of
from llmdistill.schedule.job import Job, keys_path

_MOST_BYTES = 990
"""Debian's cron takes commands of 999 bytes."""


def line(job: Job) -> str:
    """The crontab line.

    Raises:
        ConfigError: the time zone is not this machine's.
        UsageError: cron cannot take the command.
    """
    _check_zone(job)
    command = _command(job)
    if "\\" in command:
        raise UsageError("crontabs differ in how they read a backslash", where=repr(command), do="use --as systemd")
    command = command.replace("%", "\\%")
    if len(os.fsencode(command)) > _MOST_BYTES:
        what = f"the command is longer than the {_MOST_BYTES} bytes that every cron takes"
        raise UsageError(what, where=str(job.folder), do="use --as systemd, or shorter paths")
    return f"{' '.join(plain_fields(job.cron))} {command}"


def _command(job: Job) -> str:
    """For /bin/sh; cron starts it with hardly any environment, so the keys come from a file."""
    keys, log = shlex.quote(str(keys_path())), shlex.quote(str(job.log_path))
    return (
        f"cd {shlex.quote(str(job.folder))} && mkdir -p {shlex.quote(str(job.log_path.parent))}"
        f" && {{ [ ! -r {keys} ] || {{ set -a; . {keys}; set +a; }}; }}"
        f" && {' '.join(shlex.quote(word) for word in job.command)} >{log} 2>&1"
    )


def block(job: Job) -> str:
    """The line between its two comments."""
    begin, end = _marks(job)
    return f"{begin}\n{line(job)}\n{end}\n"


def _marks(job: Job) -> tuple[str, str]:
    return f"# {job.label}: begin (llmdistill schedule)", f"# {job.label}: end"


def merged(before: str, job: Job) -> str:
    """A crontab with this job's block in it, once; every other line stays as it is.

    Raises:
        UsageError: one of the two comments is missing.
    """
    begin, end = _marks(job)
    lines = before.splitlines(keepends=True)
    found = [[index for index, text in enumerate(lines) if text.strip() == mark] for mark in (begin, end)]
    if [len(places) for places in found] not in ([0, 0], [1, 1]) or found[0] > found[1]:
        raise UsageError(f"the comments around {job.label} are no longer a pair", where="crontab", do="crontab -e")
    if not found[0]:
        gap = "" if not before or before.endswith("\n") else "\n"
        return before + gap + block(job)
    return "".join([*lines[: found[0][0]], block(job), *lines[found[1][0] + 1 :]])


def install(job: Job) -> bool:
    """Put the line into this user's crontab; False when it stood there already.

    Raises:
        UsageError: there is no `crontab` program.
        StageError: it refused.
    """
    if shutil.which("crontab") is None:
        raise UsageError("there is no crontab program on this machine", do="use --as systemd, or --daemon")
    before = _current()
    after = merged(before, job)
    if after == before:
        return False
    done = subprocess.run(["crontab", "-"], input=os.fsencode(after), capture_output=True, check=False)
    if done.returncode:
        raise StageError(f"crontab refused the new table: {_said(done.stderr)}", do="see crontab -l")
    return True


def _current() -> str:
    listed = subprocess.run(["crontab", "-l"], capture_output=True, check=False)
    if listed.returncode and b"no crontab" not in listed.stderr:  # overwriting what cannot be read would lose it
        raise StageError(f"crontab -l fails: {_said(listed.stderr)}", do="see man crontab")
    return "" if listed.returncode else os.fsdecode(listed.stdout)


def _said(stderr: bytes) -> str:
    return stderr.decode("utf-8", "replace").strip()[:200] or "it does not say why"


def _check_zone(job: Job) -> None:
    zone = zone_of(job.timezone)
    if zone is not None and not _is_here(zone):
        what = f"cron goes by this machine's clock, which is not that of {job.timezone}"
        raise ConfigError(what, where="schedule.timezone", do="use --as systemd, or --daemon")


def _is_here(zone: tzinfo) -> bool:
    """Whether the clocks of a zone show what this machine's do, all the coming year."""
    days = (datetime.now(UTC) + timedelta(days=number) for number in range(366))
    return all(day.astimezone(zone).utcoffset() == day.astimezone().utcoffset() for day in days)
