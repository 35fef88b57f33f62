"""The schedule in a process of our own (the extra `schedule`): `llmdistill schedule PIPELINE --daemon`.

APScheduler wakes it at the planned times (coalesced, one instance, no firing too late to count); what is due is read
from the log of firings (`firings.py`) and the clock alone. So a firing that comes while another is worked on is taken
up after it, those missed while the daemon was down are caught up by one, and a clock that is set back fires nothing
twice. The log is looked at every few seconds besides, for a clock that was set or a machine that slept: APScheduler
counts its waiting by a clock that stands still then.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from llmdistill.errors import BusyError, LlmdistillError
from llmdistill.run.files import make_dir
from llmdistill.run.lock import locked
from llmdistill.run.progress import say
from llmdistill.schedule.cron import zone_of
from llmdistill.schedule.firing import Order
from llmdistill.schedule.firings import Firing, Firings, firings_path
from llmdistill.schedule.job import Job
from llmdistill.schedule.times import Times, require_extra

LOOK_SECONDS = 15.0
RETRY_SECONDS = (5.0, 600.0)
"""Pause before an open firing is tried again: the first, doubled up to the last."""

_ALONE_SECONDS = 1.0


def lock_dir(run_path: Path) -> Path:
    """The folder whose lock a run's daemon holds."""
    return run_path / "refresh" / "daemon"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Daemon:
    """Fires the job's command when it is due, until a signal ends it.

    Args:
        command: what a firing runs; None is the job's own refresh.
        now: the clock.
        look: seconds between two looks at the log.
        retry: the shortest and the longest pause before an open firing is tried again.

    Raises:
        MissingExtraError: APScheduler is not installed.
    """

    def __init__(
        self,
        job: Job,
        command: Sequence[str] | None = None,
        *,
        now: Callable[[], datetime] = _utc_now,
        look: float = LOOK_SECONDS,
        retry: tuple[float, float] = RETRY_SECONDS,
    ) -> None:
        require_extra("a schedule of our own")
        self.job, self.now, self.look, self.retry = job, now, look, retry
        self.command = list(command or job.command)
        self.times = Times(job.cron, zone_of(job.timezone))
        self._stop = threading.Event()
        self._working, self._starting = threading.Lock(), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._said = ""

    def serve(self) -> None:
        """Fire until `Interrupted` is raised here; a refresh that runs then is stopped in order and stays owed.

        Raises:
            BusyError: another daemon keeps this schedule.
            DamagedError: the log of firings cannot be read.
            DiskError: it cannot be written.
        """
        from apscheduler.executors.pool import ThreadPoolExecutor
        from apscheduler.schedulers.background import BackgroundScheduler

        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # what it calls skipped is taken up from the log
        with ExitStack() as stack:
            self._hold(stack)
            self.log = Firings(firings_path(self.job.run_path))
            self.log.follow(self.times, self.job.timezone, self.now())
            scheduler = BackgroundScheduler(timezone=self.times.zone, executors={"default": ThreadPoolExecutor(1)})
            waking = scheduler.add_job(
                self._work_off,
                self.times.trigger,
                coalesce=True,
                max_instances=1,
                misfire_grace_time=None,
                next_run_time=self.now(),
            )
            say(f"next refresh: {self._shown(self.times.after(self.now()))} ({self.job.cron.text})")
            try:
                scheduler.start()
                while True:
                    self._stop.wait(self.look)
                    if not self._working.locked():
                        waking.modify(next_run_time=self.now())
            finally:
                self._end()
                if scheduler.running:
                    scheduler.shutdown(wait=True)

    def _hold(self, stack: ExitStack) -> None:
        """Take the lock of the run's daemon. `--status` may hold it for a moment."""
        deadline = time.monotonic() + _ALONE_SECONDS
        while True:
            try:
                return stack.enter_context(locked(lock_dir(self.job.run_path)))
            except BusyError as error:
                if time.monotonic() > deadline:
                    holder = error.what.removesuffix(" is working on this run")
                    what, advice = f"{holder} keeps the schedule of this run already", "end that one first"
                    raise BusyError(what, where=self.job.run_path, do=advice) from error
            self._stop.wait(0.1)

    def _end(self) -> None:
        with self._starting:
            self._stop.set()
            if self._process is not None:
                self._process.terminate()

    def _work_off(self) -> None:
        """Carry out what is owed, one after the other, until nothing is."""
        with self._working:
            try:
                pause = self.retry[0]
                while not self._stop.is_set():
                    firing = self.log.unfinished() or self.log.claim(self.times, self.now())
                    if firing is None:
                        break
                    if self._carry_out(firing):
                        pause = self.retry[0]
                    else:
                        self._stop.wait(pause)
                        pause = min(2 * pause, self.retry[1])
                self._said = ""
            except LlmdistillError as error:  # a full disk may have room again at the next look
                if str(error) != self._said:
                    say(f"error: {error}")
                self._said = str(error)

    def _carry_out(self, firing: Firing) -> bool:
        """Have a process carry out a firing; whether it has ended."""
        job = self.job
        order = Order(
            firing.planned, self.command, str(job.folder), str(job.run_path), str(job.log_path), job.name,
            job.webhook_env,
        )  # fmt: skip
        code = self._run(order)
        if code is None:
            return False
        done = self.log.get(firing.planned)
        ended = done is not None and done.ended is not None
        if not self._stop.is_set():
            missed = "" if firing.first == firing.planned else f", for all missed since {self._shown(firing.first)}"
            after = "" if ended else ", to be tried again"
            say(f"refresh of {self._shown(firing.planned)}{missed}: exit code {code}{after}")
        return ended

    def _run(self, order: Order) -> int | None:
        """Its exit code; None when there was no start any more.

        It has a session of its own, so that what a terminal sends reaches it through this process alone, and writes
        to a file, because this process's streams may be gone before it is.
        """
        make_dir(self.job.log_path.parent)
        with self._starting, open(self.job.log_path, "ab") as output:
            if self._stop.is_set():
                return None
            self._process = subprocess.Popen(
                order.argv(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        return self._process.wait()

    def _shown(self, moment: datetime | str) -> str:
        parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        return parsed.astimezone(self.times.zone).isoformat(" ", "seconds")
