"""The daemon's log of firings, in SQLite: what was planned, claimed, started, and how it ended.

    <run>/refresh/schedule.sqlite

A firing is claimed under its planned time, which is the table's key, in one transaction and before anything is
started: it cannot be claimed twice, and one that was claimed and has no end is still owed. It stands for all that
were missed since the one before. Nothing in the file is code: APScheduler's own job store would pickle its jobs into
it, and unpickle what it finds in a run directory that somebody else may have written; and it moves a job on before
its work is done, so that a kill loses the firing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llmdistill.errors import DamagedError, DiskError
from llmdistill.run.files import make_dir
from llmdistill.schedule.cron import FIELDS, parse_cron, zone_of
from llmdistill.schedule.times import Times

_TABLES = """
CREATE TABLE IF NOT EXISTS firings (
    planned TEXT PRIMARY KEY, first TEXT NOT NULL, claimed TEXT NOT NULL,
    started TEXT, ended TEXT, attempts INTEGER NOT NULL DEFAULT 0, exit_code INTEGER
);
CREATE TABLE IF NOT EXISTS schedule (
    id INTEGER PRIMARY KEY CHECK (id = 1), cron TEXT NOT NULL, timezone TEXT, since TEXT NOT NULL
);
"""
_COLUMNS = "planned, first, claimed, started, ended, attempts, exit_code"
_FAR_AHEAD = timedelta(days=1)
"""A firing that was claimed for later than this was claimed by a clock that was wrong, and holds nothing up."""

_PATIENCE = 30.0


@dataclass(frozen=True)
class Firing:
    """One row. Times are ISO, UTC.

    Attributes:
        planned: when it was due.
        first: the earliest planned time that it stands for; others were missed in between where it is earlier.
        claimed, started, ended: when that happened by the clock; `started` is that of the last attempt.
        exit_code: the refresh's; None while it has not ended.
    """

    planned: str
    first: str
    claimed: str
    started: str | None
    ended: str | None
    attempts: int
    exit_code: int | None


def firings_path(run_path: Path) -> Path:
    """The log of a run's daemon."""
    return run_path / "refresh" / "schedule.sqlite"


class Firings:
    """The log; may be used by several processes at once.

    Args:
        read_only: the file is there already, and is not written.

    Raises:
        DamagedError: from every method, when the file is no such log.
        DiskError: from every method, when it cannot be written.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path, self._read_only = path, read_only
        if read_only:
            return
        make_dir(path.parent)
        with self._open() as database:
            for statement in _TABLES.split(";"):
                database.execute(statement)

    def follow(self, times: Times, timezone: str | None, now: datetime) -> None:
        """Keep to this schedule from now on. What another one owes until now is claimed first."""
        with self._open() as database:
            row = database.execute("SELECT cron, timezone, since FROM schedule").fetchone()
            same = row is not None and tuple(row[:2]) == (times.cron.text, timezone)
            if same and row[2] <= _iso(now):
                return
            if row is not None and not same:
                _claim_due(database, _times_of(row[0], row[1]), now)
            values = (times.cron.text, timezone, _iso(now))
            database.execute("INSERT OR REPLACE INTO schedule VALUES (1, ?, ?, ?)", values)

    def claim(self, times: Times, now: datetime) -> Firing | None:
        """Claim what is due: one firing, for all that are; None when nothing is."""
        with self._open() as database:
            planned = _claim_due(database, times, now)
            return None if planned is None else _one(database, "planned = ?", planned)

    def owed(self, times: Times, now: datetime) -> tuple[datetime, datetime] | None:
        """The first and the last planned time that are due and not claimed; None when nothing is."""
        with self._open() as database:
            return _due(database, times, now)

    def unfinished(self) -> Firing | None:
        """The oldest firing that was claimed and has not ended."""
        with self._open() as database:
            return _one(database, "ended IS NULL ORDER BY planned")

    def get(self, planned: str) -> Firing | None:
        """The firing of a planned time."""
        with self._open() as database:
            return _one(database, "planned = ?", planned)

    def last(self) -> Firing | None:
        """The latest firing that has ended."""
        with self._open() as database:
            return _one(database, "ended IS NOT NULL ORDER BY planned DESC")

    def all(self) -> list[Firing]:
        """Every firing, in the order of their planned times."""
        with self._open() as database:
            return [Firing(*row) for row in database.execute(f"SELECT {_COLUMNS} FROM firings ORDER BY planned")]

    def begin(self, planned: str, now: datetime) -> None:
        """An attempt at a firing is about to be started."""
        with self._open() as database:
            sql = "UPDATE firings SET started = ?, attempts = attempts + 1 WHERE planned = ?"
            database.execute(sql, (_iso(now), planned))

    def end(self, planned: str, exit_code: int, now: datetime) -> None:
        """A firing has ended; it is never started again."""
        with self._open() as database:
            sql = "UPDATE firings SET ended = ?, exit_code = ? WHERE planned = ? AND ended IS NULL"
            database.execute(sql, (_iso(now), exit_code, planned))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone in the file; a connection of its own, so that any thread may ask for one."""
        try:
            with closing(self._connect()) as database:
                database.execute("PRAGMA synchronous = FULL")
                database.execute("BEGIN" if self._read_only else "BEGIN IMMEDIATE")
                with database:
                    yield database
        except sqlite3.OperationalError as error:
            raise DiskError(f"the log of firings cannot be used ({error})", where=self.path) from error
        except sqlite3.DatabaseError as error:
            advice = "move the file away; the schedule then begins anew"
            raise DamagedError(f"not readable as a log of firings ({error})", where=self.path, do=advice) from error

    def _connect(self) -> sqlite3.Connection:
        address = self.path.resolve().as_uri() + ("?mode=ro" if self._read_only else "")
        return sqlite3.connect(address, timeout=_PATIENCE, isolation_level=None, uri=True)


def _one(database: sqlite3.Connection, condition: str, *values: str) -> Firing | None:
    row = database.execute(f"SELECT {_COLUMNS} FROM firings WHERE {condition} LIMIT 1", values).fetchone()
    return None if row is None else Firing(*row)


def _due(database: sqlite3.Connection, times: Times, now: datetime) -> tuple[datetime, datetime] | None:
    """What is planned after the last claimed firing, and after the schedule's beginning, until now."""
    ahead = _iso(now + _FAR_AHEAD)
    (claimed,) = database.execute("SELECT max(planned) FROM firings WHERE planned <= ?", (ahead,)).fetchone()
    since = database.execute("SELECT since FROM schedule").fetchone()
    known = [text for text in (claimed, since and since[0]) if text]
    return times.due(datetime.fromisoformat(max(known)), now) if known else None


def _claim_due(database: sqlite3.Connection, times: Times, now: datetime) -> str | None:
    due = _due(database, times, now)
    if due is None:
        return None
    first, planned = map(_iso, due)
    values = (planned, first, _iso(now))
    done = database.execute("INSERT OR IGNORE INTO firings (planned, first, claimed) VALUES (?, ?, ?)", values)
    return planned if done.rowcount else None


def _times_of(text: str, timezone: str | None) -> Times:
    return Times(parse_cron(text, with_seconds=len(text.split()) > len(FIELDS)), zone_of(timezone))


def _iso(moment: datetime) -> str:
    """One form, so that texts are in the order of their times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00")
