"""A systemd timer and its service, as user units.

Missed runs are caught up (`Persistent=true`), runs never overlap (a service runs once at a time), a refresh that has
to come again later (exit code 75) is started again after ten minutes. Every other exit code but 0 leaves the service
failed, where `systemctl --user --failed` and monitoring see it: 5 too, because a student that is refused week after
week is what somebody has to look at; the timer goes on all the same. No key stands in a unit.
"""

from __future__ import annotations

import re
from pathlib import Path

from llmdistill.errors import UsageError
from llmdistill.run.files import write_text
from llmdistill.schedule.cron import WEEKDAYS, Cron, compact
from llmdistill.schedule.job import Job, config_home, keys_path


def calendars(cron: Cron, timezone: str | None) -> list[str]:
    """`OnCalendar=` values that fire when the cron line does; two where either of two days counts."""
    months = "*" if len(cron.months) == 12 else compact(cron.months, "..", 2)
    days = "*" if len(cron.days) == 31 else compact(cron.days, "..", 2)
    weekdays = "" if len(cron.weekdays) == 7 else ",".join(_weekday(number) for number in cron.weekdays) + " "
    clock = ":".join(
        "*" if len(numbers) == limit else compact(numbers, "..", 2)
        for numbers, limit in ((cron.hours, 24), (cron.minutes, 60), (cron.seconds, 60))
    )
    end = f"{clock} {timezone}" if timezone else clock
    if not cron.either_day:
        return [f"{weekdays}*-{months}-{days} {end}"]
    return [f"*-{months}-{days} {end}", f"{weekdays}*-{months}-* {end}"]


def _weekday(number: int) -> str:
    return WEEKDAYS[number].capitalize()


def timer(job: Job) -> str:
    """The text of the timer unit."""
    lines = [f"OnCalendar={calendar}" for calendar in calendars(job.cron, job.timezone)]
    return "\n".join(
        [
            "[Unit]",
            f"Description=When llmdistill refreshes {_plain(job.name)} ({_plain(job.cron.text)})",
            "",
            "[Timer]",
            *lines,
            "Persistent=true",
            "AccuracySec=1s",
            "",
            "[Install]",
            "WantedBy=timers.target",
            "",
        ]
    )


def service(job: Job) -> str:
    """The text of the service unit."""
    return "\n".join(
        [
            "[Unit]",
            f"Description=llmdistill refreshes {_plain(job.name)}",
            "",
            "[Service]",
            "Type=oneshot",
            f"WorkingDirectory={_path(job.folder)}",
            "# Keys, as NAME=value lines; the file need not exist.",
            f"EnvironmentFile=-{_path(keys_path())}",
            f"ExecStart=:{' '.join(_word(word) for word in _command(job))}",
            "# A stop in good order is no failure. A refused promotion (5) is one: somebody has to look at it.",
            "SuccessExitStatus=143",
            "# Only what has to come again later (75) is started again.",
            "Restart=on-failure",
            "RestartSec=10min",
            "RestartPreventExitStatus=1 2 3 4 5 126 127 SIGKILL SIGABRT SIGSEGV SIGBUS SIGILL SIGFPE",
            "KillMode=mixed",
            "TimeoutStopSec=5min",
            "",
        ]
    )


def install(job: Job) -> list[Path]:
    """Write both units where systemd looks for this user's; gives their paths."""
    folder = config_home() / "systemd" / "user"
    paths = [folder / f"{job.label}.service", folder / f"{job.label}.timer"]
    for path, text in zip(paths, (service(job), timer(job)), strict=True):
        write_text(path, text)
    return paths


def _plain(text: str) -> str:
    """Text in a setting that systemd expands `%` in."""
    return text.replace("%", "%%").rstrip("\\ ")


def _path(path: Path) -> str:
    """A path that is the rest of its line."""
    text = str(path)
    if text != text.strip() or text.endswith("\\"):
        raise UsageError("a systemd unit cannot name a path that ends like this", where=repr(text), do="rename it")
    return text.replace("%", "%%")


def _command(job: Job) -> list[str]:
    """The command; systemd starts no program with quotes in its path, but the shell does."""
    if re.search(r"[\"'\\]", job.command[0]):
        return ["/bin/sh", "-c", 'exec "$0" "$@"', *job.command]
    return job.command


def _word(text: str) -> str:
    """One word of a command line; the `:` before the command keeps systemd from reading `$`."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
