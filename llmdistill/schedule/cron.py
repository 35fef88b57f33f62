"""The five fields of a cron line, as sets of numbers: one reading for systemd, crontab, Kubernetes and the daemon.

Minute, hour, day of the month, month, day of the week; lists, ranges, steps, English names of three letters; 0 and 7
are Sunday. Where both days are restricted a day counts when either fits, as in every cron. A day field that begins
with `*` (also `*/2`) does not restrict in that sense, as in Vixie's cron (man 5 crontab): then both must fit.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from zoneinfo import ZoneInfo, available_timezones

from llmdistill.errors import ConfigError

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")

_ADVICE = 'write five fields, e.g. "0 3 * * 1": minute, hour, day of the month, month, day of the week'
_ITEM = re.compile(r"(?:(?P<all>\*)|(?P<first>\w{1,9})(?:-(?P<last>\w{1,9}))?)(?:/(?P<step>\d{1,9}))?", re.ASCII)
_DAYS_IN_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True)
class Field:
    """What one field of a cron line may hold; the names stand for the numbers from `low` on."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


SECOND = Field("second", 0, 59)
MINUTE = Field("minute", 0, 59)
HOUR = Field("hour", 0, 23)
DAY = Field("day of the month", 1, 31)
MONTH = Field("month", 1, 12, MONTHS)
WEEKDAY = Field("day of the week", 0, 7, WEEKDAYS)
FIELDS = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)


@dataclass(frozen=True)
class Cron:
    """The times that fit.

    Attributes:
        text: as it was written, blanks made single.
        weekdays: 0 is Sunday, 6 Saturday.
        day_star, weekday_star: whether that field begins with `*`.
        seconds: more than the first second of a minute only where six fields were asked for.
    """

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    day_star: bool
    weekday_star: bool
    seconds: tuple[int, ...] = (0,)

    @property
    def either_day(self) -> bool:
        """Whether a day counts that fits only one of the two day fields."""
        return not self.day_star and not self.weekday_star

    @property
    def shortest_gap(self) -> int:
        """Seconds between two firings of a day that lie closest, a day for a single one; the true gap is not less."""
        of_day = sorted(hour * 60 + minute for hour in self.hours for minute in self.minutes)
        gaps = [later - earlier for earlier, later in zip(of_day, [*of_day[1:], of_day[0] + 1440], strict=True)]
        return min(gaps) * 60


def parse_cron(text: str, where: str = "schedule.cron", with_seconds: bool = False) -> Cron:
    """Read a cron line.

    Args:
        where: what the mistake is reported at, the setting or the flag.
        with_seconds: a sixth field stands first, the second; for schedules that outrun cron, as tests do.

    Raises:
        ConfigError: names the field that is wrong, or says that no such date exists.
    """
    fields = (SECOND, *FIELDS) if with_seconds else FIELDS
    words = text.split()
    if len(words) != len(fields):
        raise ConfigError(f"{text!r} has {len(words)} fields, not {len(fields)}", where=where, do=_ADVICE)
    values = [_values(field, word, where) for field, word in zip(fields, words, strict=True)]
    seconds = values.pop(0) if with_seconds else (0,)
    weekdays = tuple(sorted({number % 7 for number in values[4]}))
    stars = words[-3].startswith("*"), words[-1].startswith("*")
    cron = Cron(" ".join(words), values[0], values[1], values[2], values[3], weekdays, *stars, seconds=seconds)
    _check_date(cron, where)
    return cron


def _values(field: Field, word: str, where: str) -> tuple[int, ...]:
    found: set[int] = set()
    for item in word.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise _wrong(field, item, "is not a number, a range, a step or *", where)
        found.update(_span(field, match, where))
    return tuple(sorted(found))


def _span(field: Field, match: re.Match[str], where: str) -> range:
    """The numbers of one item of a list: `*`, `3`, `3-9`, each with a step or without."""
    first, last = field.low, 6 if field is WEEKDAY else field.high
    if match["all"] is None:
        first = _number(field, match["first"], match[0], where)
        if match["last"] is not None:
            last = _number(field, match["last"], match[0], where)
            last = 7 if field is WEEKDAY and last == 0 < first else last
        elif match["step"] is None:
            last = first
    if last < first:
        raise _wrong(field, match[0], "runs backwards", where)
    step = int(match["step"] or 1)
    if step == 0 or step > max(last - first, 1):
        raise _wrong(field, match[0], f"has a step that does not fit between {first} and {last}", where)
    return range(first, last + 1, step)


def _number(field: Field, text: str, item: str, where: str) -> int:
    if text.lower() in field.names:
        return field.low + field.names.index(text.lower())
    if not text.isdigit():
        names = f" and no name of the kind {field.names[0]}" if field.names else ""
        raise _wrong(field, item, f"is no number{names}", where)
    if not field.low <= int(text) <= field.high:
        raise _wrong(field, item, f"is outside {field.low} to {field.high}", where)
    return int(text)


def _wrong(field: Field, item: str, what: str, where: str) -> ConfigError:
    return ConfigError(f"{item!r} in the field {field.name} {what}", where=where, do=_ADVICE)


def _check_date(cron: Cron, where: str) -> None:
    longest = max(_DAYS_IN_MONTH[month - 1] for month in cron.months)
    if not cron.either_day and cron.days[0] > longest:
        what = f"the field {DAY.name} names a day that no month in the field {MONTH.name} has"
        raise ConfigError(what, where=where, do="mend one of the two fields")


def compact(numbers: Sequence[int], dash: str, width: int = 1) -> str:
    """Numbers as a list in which three or more in a row are a range."""
    parts, start = [], 0
    for index in range(1, len(numbers) + 1):
        if index < len(numbers) and numbers[index] == numbers[index - 1] + 1:
            continue
        run = [f"{number:0{width}}" for number in numbers[start:index]]
        parts += [f"{run[0]}{dash}{run[-1]}"] if len(run) > 2 else run
        start = index
    return ",".join(parts)


def plain_fields(cron: Cron) -> list[str]:
    """The five fields with numbers for names and no steps; one that begins with `*` stays as it is."""
    words = cron.text.split()[-5:]
    numbers = (cron.minutes, cron.hours, cron.days, cron.months, cron.weekdays)
    return [word if word.startswith("*") else compact(values, "-") for word, values in zip(words, numbers, strict=True)]


def zone_of(name: str | None) -> tzinfo | None:
    """The time zone of a setting; None is this machine's.

    Raises:
        ConfigError: there is no such zone; names the nearest one.
    """
    if name is None:
        return None
    known = available_timezones()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        advice = f"did you mean {close[0]}?" if close else "take a name such as Europe/Berlin or Asia/Seoul"
        raise ConfigError(f"{name!r} is no time zone", where="schedule.timezone", do=advice)
    return ZoneInfo(name)
