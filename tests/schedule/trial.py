"""Many firings of one daemon that is killed, stopped and restarted, on a clock that jumps, with runs that overlap."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from llmdistill.schedule.firings import Firing, Firings, firings_path
from tests.schedule.daemons import Keeper

EVERY = 1
CRON = f"*/{EVERY} * * * * *"
LONG = 3.0
ACTIONS = ("kill", "kill_all_during_run", "stop", "long_run", "forward", "back", "later", "rival", "down")


@dataclass
class Trial:
    """What came of it.

    Attributes:
        said: the lines of the refreshes.
        rows: the log of firings.
        done: how often each thing was done to the daemon.
    """

    said: list[str]
    rows: list[Firing]
    done: Counter[str]

    def planned_when(self, word: str) -> list[str]:
        return [line.split()[1] for line in self.said if line.split()[0] == word]

    @property
    def lost(self) -> list[str]:
        """Planned times between the first and the last that no firing stands for."""
        grid = _grid(self.rows[0].first, self.rows[-1].planned)
        covered = {moment for row in self.rows for moment in _grid(row.first, row.planned)}
        ended = set(self.planned_when("end"))
        return sorted(set(grid) - covered) + [row.planned for row in self.rows if row.planned not in ended]

    @property
    def doubled(self) -> list[str]:
        """Planned times that two firings stand for, or that a refresh was brought to its end for twice."""
        stood_for = Counter(moment for row in self.rows for moment in _grid(row.first, row.planned))
        ended = Counter(self.planned_when("end"))
        return [moment for counts in (stood_for, ended) for moment, count in counts.items() if count > 1]


def _grid(first: str, last: str) -> list[str]:
    start, end = datetime.fromisoformat(first), datetime.fromisoformat(last)
    count = int((end - start).total_seconds()) // EVERY
    return [(start + timedelta(seconds=EVERY * number)).isoformat() for number in range(count + 1)]


def run_trial(folder: Path, num_firings: int, actions: Iterable[str], seed: int) -> Trial:
    """Keep a daemon until so many firings have ended, doing the actions in their order at random moments."""
    with Keeper(folder, CRON) as keeper:
        return _tried(keeper, num_firings, actions, random.Random(seed))


def _tried(keeper: Keeper, num_firings: int, actions: Iterable[str], chance: random.Random) -> Trial:
    done = Counter[str]()
    keeper.start()
    for action in actions:
        time.sleep(chance.uniform(0.3, 2.5))
        _ACT[action](keeper, chance, done)
        done[action] += 1
    keeper.wait_for(lambda: len(_ended(keeper)) >= num_firings, 6 * EVERY * num_firings)
    keeper.wait_for(lambda: _log(keeper).unfinished() is None)
    keeper.stop()
    if (left := _log(keeper).unfinished()) is not None:
        raise AssertionError(f"still open: {left}")
    return Trial(keeper.said(), _log(keeper).all(), done)


def _log(keeper: Keeper) -> Firings:
    return Firings(firings_path(keeper.run_path))


def _ended(keeper: Keeper) -> list[Firing]:
    return [row for row in _log(keeper).all() if row.ended is not None]


def _kill(keeper: Keeper, chance: random.Random, done: Counter[str]) -> None:
    busy = _log(keeper).unfinished() is not None
    keeper.kill()
    done["kills while a refresh ran"] += busy
    time.sleep(chance.uniform(0.0, 2.0))
    keeper.start()


def _kill_all_during_run(keeper: Keeper, chance: random.Random, done: Counter[str]) -> None:
    """The machine goes down in the middle of a refresh, which then has to be done over."""
    with _lasting(keeper, LONG):
        _wait_for_run(keeper)
        time.sleep(chance.uniform(0.1, 1.0))
        keeper.kill_all()
    keeper.start()


def _stop(keeper: Keeper, chance: random.Random, done: Counter[str]) -> None:
    """In order, in the middle of a refresh."""
    with _lasting(keeper, LONG):
        _wait_for_run(keeper)
        code = keeper.stop()
    if code != 143:
        raise AssertionError(f"ended with exit code {code}")
    time.sleep(chance.uniform(0.0, 2.0))
    keeper.start()


def _long_run(keeper: Keeper, chance: random.Random, done: Counter[str]) -> None:
    """The daemon dies while a refresh outlasts two more firings; the next daemon waits for it."""
    with _lasting(keeper, LONG):
        _wait_for_run(keeper)
    if chance.random() < 0.5:
        _kill(keeper, chance, done)
    time.sleep(LONG)


def _forward(keeper: Keeper, chance: random.Random, done: Counter[str]) -> None:
    keeper.set_clock(_offset(keeper) + chance.randint(3, 3600))


def _back(keeper: Keeper, chance: random.Random, done: Counter[str]) -> None:
    """By a few seconds: until the clock is where it was, nothing is due."""
    keeper.set_clock(_offset(keeper) - chance.randint(2, 6))


def _later(keeper: Keeper, chance: random.Random, done: Counter[str]) -> None:
    """A refresh that has to come again, twice."""
    (keeper.folder / "codes").write_text("75 75")


def _rival(keeper: Keeper, chance: random.Random, done: Counter[str]) -> None:
    """A second daemon is refused."""
    mine = keeper.process
    rival = keeper.start()
    keeper.process = mine
    if (code := rival.wait(30)) != 75:
        raise AssertionError(f"exit code {code}; " + (keeper.folder / "daemon.log").read_text()[-1500:])


def _down(keeper: Keeper, chance: random.Random, done: Counter[str]) -> None:
    """No daemon, for a few firings."""
    keeper.kill()
    time.sleep(chance.uniform(2.0, 3.0) * EVERY)
    keeper.start()


_ACT = {name: globals()[f"_{name}"] for name in ACTIONS}


class _lasting:  # noqa: N801
    """Refreshes that begin inside the block last so many seconds."""

    def __init__(self, keeper: Keeper, seconds: float) -> None:
        self.path, self.seconds = keeper.folder / "seconds", seconds

    def __enter__(self) -> None:
        self.path.write_text(f"{self.seconds}")

    def __exit__(self, *_: object) -> None:
        self.path.unlink()


def _wait_for_run(keeper: Keeper) -> None:
    """Until a refresh begins that was not there before."""
    before = len(keeper.said("begin"))
    keeper.wait_for(lambda: len(keeper.said("begin")) > before)


def _offset(keeper: Keeper) -> float:
    return float((keeper.folder / "clock").read_text())
