"""Cron lines: what they mean, what is refused, and that systemd and APScheduler fire at the same times."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from llmdistill.errors import ConfigError, LlmdistillError
from llmdistill.schedule.cron import Cron, parse_cron, plain_fields, zone_of
from llmdistill.schedule.systemd import calendars
from tests.schedule.jobs import needs_apscheduler

START = datetime(2026, 2, 25, 22, 31, 7, tzinfo=UTC)
CRONS = [
    *("0 3 * * 1", "* * * * *", "*/15 * * * *", "5,35 */6 * * *", "0 0 1 * *", "59 23 31 12 *", "0 12 29 2 *"),
    *("0 9-17 * * 1-5", "30 8 * * mon-fri", "0 0 * jan,jul sun", "0 0 * * 0", "0 0 * * 7", "0 0 * * 5-7"),
    *("0 0 * * sat-sun", "15 4 1,15 * 3", "0 0 13 * FRI", "0 0 */10 * 2", "0 6 1-7 * *", "0 6 1-7 * */2"),
    *("10/20 1 * * *", "0 0 10-20/5 2-11/3 *", "0 22 * feb-apr 1,3,5", "7-59/13 3-5 28-31 * 4", "0 0 31 * 0"),
    *("0 5 1-31 * 6", "0 0 * * *", "1 1 1 1 1", "0-10,50-59/3 0,12 * * *"),
]


def made_crons(num: int) -> list[str]:
    """Others, drawn anew from one seed."""
    chance = random.Random(9)

    def field(low: int, high: int) -> str:
        first, last = sorted(chance.sample(range(low, high + 1), 2))
        kinds = ["*", "*", f"{first}", f"{first}-{last}", f"{first},{last}", f"{low}-{high}/3", "*/2"]
        return chance.choice(kinds)

    spans = ((0, 59), (0, 23), (1, 28), (1, 12), (0, 7))
    return [" ".join(field(*span) for span in spans) for _ in range(num)]


def numbers(word: str, low: int, high: int) -> set[int]:
    """What one field names, from the manual's words alone."""
    names = {name: number for number, name in enumerate("sun mon tue wed thu fri sat".split())}
    names |= {name: n for n, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}
    found: set[int] = set()
    for item in re.sub("[a-z]+", lambda name: str(names[name[0]]), word.lower()).split(","):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        start = low if first == "*" else int(first)
        end = high if first == "*" or (step and not last) else int(last or first)
        found |= set(range(start, (7 if end < start else end) + 1, int(step or 1)))
    return found


def sought(text: str, num: int, most_days: int = 25) -> list[datetime]:
    """The first times that fit, found by walking through the minutes."""
    minute, hour, day, month, weekday = text.split()
    minutes, hours, months = numbers(minute, 0, 59), numbers(hour, 0, 23), numbers(month, 1, 12)
    days, weekdays = numbers(day, 1, 31), {number % 7 for number in numbers(weekday, 0, 6)}
    either = not day.startswith("*") and not weekday.startswith("*")
    moment, found = START.replace(second=0), []
    while len(found) < num and moment < START + timedelta(days=most_days):
        moment += timedelta(minutes=1)
        if moment.minute not in minutes or moment.hour not in hours or moment.month not in months:
            continue
        by_date, by_week = moment.day in days, moment.isoweekday() % 7 in weekdays
        if by_date or by_week if either else by_date and by_week:
            found.append(moment)
    return found


def fired(cron: Cron, num: int, start: datetime = START, zone: str = "UTC") -> list[datetime]:
    from llmdistill.schedule.times import Times

    times, found = Times(cron, ZoneInfo(zone)), [start]
    for _ in range(num):
        found.append(times.after(found[-1]))
    return found[1:]


class TestMeaning:
    @pytest.mark.parametrize("text", CRONS + made_crons(20))
    def test_times_are_those_found_by_walking_through_the_minutes(self, text):
        needs_apscheduler()
        expected = sought(text, 5)
        assert fired(parse_cron(text), len(expected)) == expected

    @pytest.mark.parametrize("text", CRONS + made_crons(40))
    def test_the_plain_fields_mean_the_same(self, text):
        cron, plain = parse_cron(text), parse_cron(" ".join(plain_fields(parse_cron(text))))
        meaning = [
            (one.minutes, one.hours, one.days, one.months, one.weekdays, one.either_day) for one in (cron, plain)
        ]
        assert meaning[0] == meaning[1]
        assert not re.search("[a-z7]", plain_fields(cron)[4])

    @pytest.mark.parametrize(
        ("text", "gap"), [("* * * * *", 60), ("0 3 * * 1", 86_400), ("0,50 * * * *", 600), ("5 0,23 * * *", 3600)]
    )
    def test_the_shortest_gap_goes_over_midnight(self, text, gap):
        assert parse_cron(text).shortest_gap == gap


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("0 3 * *", "has 4 fields, not 5"),
            ("0 0 3 * * 1", "has 6 fields, not 5"),
            ("", "has 0 fields"),
            ("60 3 * * 1", "field minute is outside 0 to 59"),
            ("0 24 * * 1", "field hour is outside"),
            ("0 3 0 * 1", "field day of the month is outside"),
            ("0 3 * 13 1", "field month is outside"),
            ("0 3 * * 8", "field day of the week is outside"),
            ("0 3 * * montag", "field day of the week is no number"),
            ("0 3 * 1-foo 1", "field month is no number"),
            ("0 3 ? * 1", "'?' in the field day of the month"),
            ("0 3 L * *", "field day of the month is no number"),
            ("0 3 * * 1#2", "field day of the week"),
            ("-5 3 * * 1", "field minute"),
            ("1, 3 * * 1", "'' in the field minute"),
            ("*/0 3 * * 1", "field minute has a step that does not fit"),
            ("*/60 3 * * 1", "field minute has a step that does not fit"),
            ("20-10 3 * * 1", "field minute runs backwards"),
            ("٣ 3 * * 1", "field minute"),
            ("0 " + "9" * 5000 + " * * 1", "field hour"),
            ("0 3 31 2,4,6 *", "names a day that no month"),
            ("@weekly", "has 1 fields"),
        ],
        ids=lambda value: value[:20],
    )
    def test_a_mistake_is_one_line_that_names_the_field(self, text, message):
        with pytest.raises(ConfigError) as caught:
            parse_cron(text, "--cron")
        assert message in str(caught.value) and str(caught.value).startswith("--cron: ")
        assert "\n" not in str(caught.value)

    def test_an_unknown_time_zone_names_the_nearest(self):
        with pytest.raises(ConfigError, match="did you mean Europe/Berlin"):
            zone_of("Europe/Berlim")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
class TestSystemd:
    @pytest.mark.parametrize("zone", ["UTC", "Asia/Seoul"])
    @pytest.mark.parametrize("text", CRONS + made_crons(20))
    def test_systemd_fires_when_apscheduler_does(self, text, zone):
        needs_apscheduler()
        cron = parse_cron(text)
        told = [elapses(calendar, 6) for calendar in calendars(cron, zone)]
        expected = sorted({moment for moments in told for moment in moments})[:6]
        assert fired(cron, len(expected), zone=zone) == expected

    def test_systemd_takes_the_machine_s_zone_where_none_is_set(self):
        assert calendars(parse_cron("30 3 1 * *"), None) == ["*-*-01 03:30:00"]


def elapses(calendar: str, num: int) -> list[datetime]:
    command = ["systemd-analyze", "calendar", f"--iterations={num}", f"--base-time={START:%Y-%m-%d %H:%M:%S} UTC"]
    said = subprocess.run([*command, calendar], capture_output=True, text=True, check=True, env={"TZ": "UTC"}).stdout
    found = re.findall(r"\(in UTC\): \w+ (\S+ \S+) UTC|(?:Next elapse|Iter. #\d+): \w+ (\S+ \S+) UTC", said)
    return [datetime.fromisoformat(first or second).replace(tzinfo=UTC) for first, second in found]


class TestClockChange:
    def test_a_certain_hour_that_comes_twice_fires_once(self):
        needs_apscheduler()
        before = datetime(2026, 10, 24, 12, tzinfo=UTC)
        found = fired(parse_cron("30 2 * * *"), 3, before, "Europe/Berlin")
        assert [moment.strftime("%d %H:%M") for moment in found] == ["25 00:30", "26 01:30", "27 01:30"]

    def test_every_hour_is_every_hour(self):
        needs_apscheduler()
        found = fired(parse_cron("0 * * * *"), 30, datetime(2026, 10, 24, 20, tzinfo=UTC), "Europe/Berlin")
        assert {later - earlier for earlier, later in zip(found, found[1:], strict=False)} == {timedelta(hours=1)}

    def test_an_hour_that_is_missing_is_not_lost(self):
        needs_apscheduler()
        before = datetime(2026, 3, 28, 12, tzinfo=UTC)
        found = fired(parse_cron("30 2 * * *"), 2, before, "Europe/Berlin")
        assert [moment.strftime("%d %H:%M") for moment in found] == ["29 01:30", "30 00:30"]


class TestDue:
    @pytest.mark.parametrize("text", ["* * * * *", "*/7 3 * * *", "0 3 * * 1", "0 0 1 1 *", "0 12 29 2 *"])
    @pytest.mark.parametrize("days", [0.0001, 0.3, 3.0, 40.0, 1500.0])
    def test_first_and_last_of_what_was_missed(self, text, days):
        needs_apscheduler()
        from llmdistill.schedule.times import Times

        times, now = Times(parse_cron(text), UTC), START + timedelta(days=days)
        due = times.due(START, now)
        first = times.after(START)
        if first > now:
            assert due is None
        else:
            assert due is not None and due[0] == first
            assert due[1] <= now < times.after(due[1])


def test_without_the_extra_one_line_names_the_command(monkeypatch):
    from llmdistill.schedule import times

    monkeypatch.setattr(times.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LlmdistillError, match="apscheduler.*llmdistill\\[schedule\\]"):
        times.require_extra("a schedule of our own")
