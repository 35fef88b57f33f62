"""When a cron line fires, by APScheduler's triggers (the extra `schedule`).

Times are UTC. Where the clocks go back, a schedule of certain hours fires once in the hour that comes twice, one of
every hour in both. Where they go forward, what was planned for the hour that is missing fires right after it.
"""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

from llmdistill.errors import MissingExtraError
from llmdistill.schedule.cron import Cron

if TYPE_CHECKING:
    from apscheduler.triggers.base import BaseTrigger

_SPANS = tuple(timedelta(seconds=seconds) for seconds in (60, 3600, 86_400, 8 * 86_400, 64 * 86_400, 400 * 86_400))


def has_extra() -> bool:
    """Whether APScheduler is installed."""
    return importlib.util.find_spec("apscheduler") is not None


def require_extra(what: str) -> None:
    """Raise `MissingExtraError` unless APScheduler is installed."""
    if not has_extra():
        raise MissingExtraError(f"{what} needs the package apscheduler", do="pip install 'llmdistill[schedule]'")


class Times:
    """The planned times of a schedule.

    Args:
        zone: the time zone of the cron line; None is this machine's.

    Attributes:
        trigger: for APScheduler; where the clocks go back it fires in both hours.
    """

    def __init__(self, cron: Cron, zone: tzinfo | None) -> None:
        from tzlocal import get_localzone

        self.cron, self.zone = cron, zone or get_localzone()
        self.trigger = _trigger_of(cron, self.zone)

    def after(self, moment: datetime) -> datetime:
        """The first planned time after a moment."""
        while True:
            found = self.trigger.get_next_fire_time(None, (moment + timedelta(microseconds=1)).astimezone(self.zone))
            moment = found.astimezone(UTC)
            if not found.astimezone(self.zone).fold or len(self.cron.hours) == 24:
                return moment

    def due(self, after: datetime, now: datetime) -> tuple[datetime, datetime] | None:
        """The first and the last planned time in (after, now]; None when there is none."""
        first = self.after(after)
        if first > now:
            return None
        for span in _SPANS:  # from near to far, so that a year of minutes is not walked through
            last = self.after(max(first - timedelta(microseconds=1), now - span))
            if last <= now:
                return first, self._last_from(last, now)
        return first, self._last_from(first, now)

    def _last_from(self, planned: datetime, now: datetime) -> datetime:
        while (later := self.after(planned)) <= now:
            planned = later
        return planned


def _trigger_of(cron: Cron, zone: tzinfo) -> BaseTrigger:
    """APScheduler counts weekdays from Monday, and takes both day fields to be meant."""
    from apscheduler.triggers.combining import OrTrigger
    from apscheduler.triggers.cron import CronTrigger

    common = {
        "month": _listed(cron.months, 12),
        "hour": _listed(cron.hours, 24),
        "minute": _listed(cron.minutes, 60),
        "second": _listed(cron.seconds, 60),
        "timezone": zone,
    }
    days = _listed(cron.days, 31)
    weekdays = _listed(sorted((number - 1) % 7 for number in cron.weekdays), 7)
    if cron.either_day:
        return OrTrigger([CronTrigger(day=days, **common), CronTrigger(day_of_week=weekdays, **common)])
    return CronTrigger(day=days, day_of_week=weekdays, **common)


def _listed(numbers: tuple[int, ...] | list[int], all_of_them: int) -> str:
    return "*" if len(numbers) == all_of_them else ",".join(map(str, numbers))
