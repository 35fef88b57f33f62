"""The log of firings: claimed once, whatever the clock does and however many ask."""

from __future__ import annotations

import multiprocessing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llmdistill.errors import DiskError
from llmdistill.schedule.cron import Cron, parse_cron
from llmdistill.schedule.firings import Firing, Firings
from tests.schedule.jobs import needs_apscheduler

START = datetime(2026, 3, 2, 3, 0, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _extra():
    needs_apscheduler()


def minutes(num: float) -> datetime:
    """So long after the beginning."""
    return START + timedelta(minutes=num)


def cron_of(text: str) -> Cron:
    return parse_cron(text)


def times_of(text: str):
    from llmdistill.schedule.times import Times

    return Times(cron_of(text), UTC)


@pytest.fixture
def log(tmp_path):
    return Firings(tmp_path / "schedule.sqlite")


def fire(log: Firings, text: str, now: datetime) -> Firing | None:
    """Claim and carry out at once."""
    firing = log.claim(times_of(text), now)
    if firing is not None:
        log.begin(firing.planned, now)
        log.end(firing.planned, 0, now)
    return firing


def planned(firing: Firing | None) -> tuple[str, str] | None:
    return None if firing is None else (firing.first[11:16], firing.planned[11:16])


def test_nothing_is_due_before_the_schedule_began(log):
    log.follow(times_of("* * * * *"), None, START)
    assert log.claim(times_of("* * * * *"), minutes(0.2)) is None


def test_what_was_missed_is_caught_up_by_one_firing(log):
    log.follow(times_of("*/5 * * * *"), None, START)
    assert planned(fire(log, "*/5 * * * *", minutes(5))) == ("03:05", "03:05")
    assert planned(fire(log, "*/5 * * * *", minutes(61))) == ("03:10", "04:00")
    assert fire(log, "*/5 * * * *", minutes(62)) is None


def test_a_year_of_missed_minutes_is_caught_up_quickly(log):
    log.follow(times_of("* * * * *"), None, START)
    found = fire(log, "* * * * *", START + timedelta(days=365))
    assert found is not None and found.planned.startswith("2027-03-02T03:00")


def test_a_clock_set_back_fires_nothing_twice_and_loses_nothing(log):
    log.follow(times_of("*/5 * * * *"), None, START)
    fire(log, "*/5 * * * *", minutes(61))
    for minute in range(5, 60, 5):
        assert fire(log, "*/5 * * * *", minutes(minute)) is None
    assert planned(fire(log, "*/5 * * * *", minutes(65))) == ("04:05", "04:05")


def test_a_clock_that_was_a_year_ahead_holds_nothing_up_once_it_is_right_again(log):
    log.follow(times_of("0 4 * * *"), None, START)
    assert fire(log, "0 4 * * *", START + timedelta(days=365)) is not None
    found = [fire(log, "0 4 * * *", START + timedelta(days=day, hours=2)) for day in range(3)]
    assert [firing.planned[5:16] for firing in found if firing] == ["03-02T04:00", "03-03T04:00", "03-04T04:00"]


def test_a_schedule_that_began_under_a_wrong_clock_begins_anew(log):
    log.follow(times_of("0 4 * * *"), None, START + timedelta(days=365))
    log.follow(times_of("0 4 * * *"), None, START)
    assert fire(log, "0 4 * * *", START + timedelta(days=1)) is not None


def test_another_cron_line_counts_from_now_and_the_old_one_loses_nothing(log):
    log.follow(times_of("0 4 * * *"), None, START)
    log.follow(times_of("*/5 * * * *"), None, minutes(120))
    owed = log.unfinished()
    assert planned(owed) == ("04:00", "04:00") and owed is not None
    log.end(owed.planned, 0, minutes(121))
    assert planned(fire(log, "*/5 * * * *", minutes(125))) == ("05:05", "05:05")


def test_the_same_line_in_another_time_zone_is_another_schedule(log):
    from zoneinfo import ZoneInfo

    from llmdistill.schedule.times import Times

    log.follow(times_of("0 4 * * *"), "UTC", START)
    seoul = Times(cron_of("0 4 * * *"), ZoneInfo("Asia/Seoul"))
    log.follow(seoul, "Asia/Seoul", minutes(1))
    found = log.claim(seoul, START + timedelta(hours=20))
    assert found is not None and found.planned == "2026-03-02T19:00:00+00:00"


def test_what_was_claimed_and_has_no_end_is_owed(log):
    log.follow(times_of("*/5 * * * *"), None, START)
    first = log.claim(times_of("*/5 * * * *"), minutes(5))
    log.claim(times_of("*/5 * * * *"), minutes(10))
    assert log.unfinished() == first
    assert first is not None
    log.end(first.planned, 3, minutes(11))
    assert planned(log.unfinished()) == ("03:10", "03:10")
    log.end(first.planned, 0, minutes(12))
    assert log.get(first.planned).exit_code == 3  # the first end counts


def claim_all(path: Path) -> list[str]:
    """What one of several processes claims."""
    log = Firings(path)
    found = [log.claim(times_of("* * * * *"), minutes(number)) for number in range(40)]
    return [firing.planned for firing in found if firing]


def test_of_several_processes_one_claims_each_firing(tmp_path):
    path = tmp_path / "schedule.sqlite"
    Firings(path).follow(times_of("* * * * *"), None, START)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        claimed = [moment for found in pool.map(claim_all, [path] * 3) for moment in found]
    rows = Firings(path).all()
    assert sorted(claimed) == [row.planned for row in rows]
    assert [row.first for row in rows[1:]] == [
        (datetime.fromisoformat(row.planned) + timedelta(minutes=1)).isoformat() for row in rows[:-1]
    ]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "schedule.sqlite").mkdir()
    with pytest.raises(DiskError, match="log of firings"):
        Firings(tmp_path / "schedule.sqlite")
