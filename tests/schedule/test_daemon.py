"""The daemon, a real process under a real clock and short crons: nothing lost, nothing twice, nothing side by side."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from llmdistill.schedule.firings import Firings, firings_path
from tests.schedule.daemons import Keeper
from tests.schedule.jobs import needs_apscheduler
from tests.schedule.trial import run_trial

NEVER = "0 0 0 1 1 *"


@pytest.fixture(autouse=True)
def _extra():
    needs_apscheduler()


@pytest.fixture
def keep(tmp_path):
    """Daemons of a cron line; none is left behind."""
    keepers: list[Keeper] = []

    def make(cron: str) -> Keeper:
        keepers.append(Keeper(tmp_path, cron))
        return keepers[-1]

    yield make
    for keeper in keepers:
        keeper.__exit__()


def log(keeper: Keeper) -> Firings:
    return Firings(firings_path(keeper.run_path))


def status(keeper: Keeper) -> dict:
    return json.loads((keeper.run_path / "refresh" / "status.json").read_text())


def test_no_firing_is_lost_or_doubled_through_kills_clock_jumps_and_overlaps(tmp_path):
    actions = ["kill", "forward", "long_run", "kill_all_during_run", "back", "later", "kill"]
    trial = run_trial(tmp_path, 12, actions, seed=3)
    assert len(trial.rows) >= 12 and all(row.exit_code == 0 for row in trial.rows)
    assert trial.lost == [] and trial.doubled == []
    assert trial.planned_when("parallel") == []
    assert any(row.first != row.planned for row in trial.rows) and any(row.attempts > 1 for row in trial.rows)


def test_a_second_daemon_is_refused_in_one_line(keep):
    first = keep(NEVER)
    daemon = first.start()
    first.wait_for(lambda: "next refresh" in (first.folder / "daemon.log").read_text())
    second = keep(NEVER)
    assert second.start().wait(30) == 75
    said = (first.folder / "daemon.log").read_text().splitlines()
    assert f"process {daemon.pid} keeps the schedule of this run already -> end that one first" in said[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_signal_ends_the_daemon_and_its_refresh_which_stays_owed(keep, number):
    keeper = keep("* * * * * *")
    (keeper.folder / "seconds").write_text("60")
    keeper.start()
    keeper.wait_for(lambda: bool(keeper.said("begin")))
    started = time.monotonic()
    assert keeper.stop(number) == 128 + number
    assert time.monotonic() - started < 20 and not keeper._firing_groups()
    owed = log(keeper).unfinished()
    assert owed is not None and owed.planned == keeper.said("begin")[0]
    (keeper.folder / "seconds").unlink()
    keeper.start()
    keeper.wait_for(lambda: owed.planned in keeper.said("end"))
    assert keeper.said("begin")[:2] == [owed.planned] * 2


def test_a_refresh_that_crashes_is_written_down_and_the_daemon_goes_on(keep):
    keeper = keep("*/2 * * * * *")
    (keeper.folder / "child.py").write_text(
        "import os, sys\nprint('한글 last words', flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    keeper.start()
    keeper.wait_for(lambda: sum(row.ended is not None for row in log(keeper).all()) >= 2)
    assert {row.exit_code for row in log(keeper).all() if row.ended} == {137}
    found = status(keeper)
    assert (found["exit_code"], found["outcome"]) == (137, "failed")
    assert found["message"].endswith("한글 last words")
    assert keeper.stop() == 143


def test_a_program_that_is_gone_is_a_failure_like_another(tmp_path):
    from llmdistill.schedule.firing import Order, carry_out
    from llmdistill.schedule.times import Times
    from tests.schedule.test_firings import START, cron_of, minutes

    firings = Firings(firings_path(tmp_path))
    times = Times(cron_of("* * * * *"), None)
    firings.follow(times, None, START)
    firing = firings.claim(times, minutes(2))
    assert firing is not None
    order = Order(firing.planned, ["/no/such/program"], str(tmp_path), str(tmp_path), str(tmp_path / "log"), "x", None)
    assert carry_out(order) == 127
    assert "No such file" in json.loads((tmp_path / "refresh" / "status.json").read_text())["message"]
    assert carry_out(order) == 0  # it has ended, and is not begun again


def test_a_status_that_the_refresh_wrote_itself_stays(keep):
    keeper = keep("*/2 * * * * *")
    (keeper.folder / "child.py").write_text(
        "import json, os, sys\npath = sys.argv[1] + '/run/refresh/status.json'\n"
        "open(path, 'w').write(json.dumps({'exit_code': 5, 'outcome': 'refused'}))\nsys.exit(5)\n"
    )
    keeper.start()
    keeper.wait_for(lambda: log(keeper).last() is not None)
    last = log(keeper).last()
    assert last is not None and last.exit_code == 5
    assert status(keeper) == {"exit_code": 5, "outcome": "refused"}


def test_a_damaged_log_stops_the_daemon_with_one_line(keep):
    keeper = keep(NEVER)
    path = firings_path(keeper.run_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database" * 100)
    assert keeper.start().wait(30) == 1
    said = (keeper.folder / "daemon.log").read_text()
    assert "schedule.sqlite: not readable as a log of firings" in said and "Traceback" not in said


def test_the_log_holds_no_pickle(keep):
    keeper = keep("* * * * * *")
    keeper.start()
    keeper.wait_for(lambda: log(keeper).last() is not None)
    keeper.stop()
    data = firings_path(keeper.run_path).read_bytes()
    assert data.startswith(b"SQLite format 3") and b"apscheduler" not in data


def test_the_module_imports_no_heavy_library():
    code = "import sys, llmdistill.schedule.firing, llmdistill.schedule.daemon; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "apscheduler", "transformers", "httpx2"} & set(done.stdout.split())
