"""A real daemon in a process of its own, on a clock that a test can set, and a refresh that says what it does.

    python -m tests.schedule.daemons FOLDER CRON        the daemon; CRON has six fields, the second first

`FOLDER/clock` holds the seconds by which its clock is off. Each firing runs `FOLDER/child.py`, which appends
`begin PLANNED` and `end PLANNED` to `FOLDER/said`, `later` in place of `end` where it has to come again, and
`parallel PLANNED` before that where another one is at work; it lasts as
long as `FOLDER/seconds` says and exits with the next line of `FOLDER/codes`, or 0. With `LIBFAKETIME` in the
environment, the path of libfaketime, the daemon's clock is shifted by that library and nothing else is replaced.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from tests.tiny import REPO

CHILD = """
import fcntl, os, select, sys
folder, planned = sys.argv[1], os.environ["LLMDISTILL_FIRING"]
def say(word):
    handle = os.open(folder + "/said", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{word} {planned}\\n".encode())
def read(name):
    try:
        with open(folder + "/" + name) as handle:
            return handle.read().split()
    except FileNotFoundError:
        return []
lock = os.open(folder + "/at-work", os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    say("parallel")
say("begin")
select.select([], [], [], float((read("seconds") or ["0.05"])[0]))  # libfaketime breaks time.sleep
codes = read("codes")
with open(folder + "/codes", "w") as handle:
    handle.write(" ".join(codes[1:]))
print("one line of output", flush=True)
code = int(codes[0]) if codes else 0
say("later" if code == 75 else "end")
sys.exit(code)
"""


class Keeper:
    """Starts, kills and stops daemons of one run, and reads what came of it. Leaves none behind."""

    def __init__(self, folder: Path, cron: str) -> None:
        self.folder, self.cron = folder, cron
        (folder / "child.py").write_text(CHILD)
        self.set_clock(0.0)
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def run_path(self) -> Path:
        return self.folder / "run"

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.schedule.daemons", str(self.folder), self.cron]
        environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", **_faked(self.folder)}
        with open(self.folder / "daemon.log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        return self.process

    def kill(self) -> None:
        """As `kill -9`; the process that carries out a firing goes on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_all(self) -> None:
        """As when the machine goes down: the daemon, and what carries out a firing, with its refresh."""
        self.kill()
        for group in self._firing_groups():
            os.killpg(group, signal.SIGKILL)

    def _firing_groups(self) -> list[int]:
        listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        mine = [
            line for line in listed.splitlines() if "llmdistill.schedule.firing" in line and str(self.folder) in line
        ]
        return [int(line.split()[0]) for line in mine]

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def set_clock(self, seconds: float) -> None:
        """Shift the daemon's clock by so many seconds from the true one."""
        for name, text in (("clock", f"{seconds}"), ("faketime", f"{seconds:+.0f}")):
            temporary = self.folder / f".{name}"
            temporary.write_text(text)
            temporary.replace(self.folder / name)

    def said(self, word: str | None = None) -> list[str]:
        """What the refreshes said, or the planned times that one word was said of."""
        path = self.folder / "said"
        lines = path.read_text().splitlines() if path.exists() else []
        return lines if word is None else [line.split()[1] for line in lines if line.split()[0] == word]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError((self.folder / "daemon.log").read_text()[-2000:])
            time.sleep(0.02)


def _faked(folder: Path) -> dict[str, str]:
    library = os.environ.get("LIBFAKETIME")
    if not library:
        return {}
    settings = {
        "FAKETIME_TIMESTAMP_FILE": str(folder / "faketime"),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    return {"LD_PRELOAD": library, **settings}


def shifted(folder: Path) -> type[datetime]:
    """A `datetime` whose `now` is off by what the clock's file says."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz=None):
            offset = 0.0 if os.environ.get("LIBFAKETIME") else float((folder / "clock").read_text())
            return datetime.now(tz) + timedelta(seconds=offset)

    return Shifted


def main(folder: Path, cron: str) -> None:
    from datetime import UTC

    import apscheduler.schedulers.base

    from llmdistill.errors import Interrupted, LlmdistillError
    from llmdistill.run.signals import stopping_in_order
    from llmdistill.schedule.cron import parse_cron
    from llmdistill.schedule.daemon import Daemon
    from llmdistill.schedule.job import Job

    clock = shifted(folder)
    apscheduler.schedulers.base.datetime = clock  # it has no other way to another clock
    job = Job("x", parse_cron(cron, with_seconds=True), "UTC", folder, ("refresh", "x.yaml"), folder / "run")
    command = [sys.executable, "-S", "-E", str(folder / "child.py"), str(folder)]
    try:
        with stopping_in_order():
            Daemon(job, command, now=lambda: clock.now(UTC), look=0.2, retry=(0.2, 0.4)).serve()
    except (Interrupted, LlmdistillError) as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
