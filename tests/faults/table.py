"""The table of the README: every fault at full size against a real server process, and what came of it.

python -m tests.faults.table            about half an hour
python -m tests.faults.table --quick    small sizes, a few minutes
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults import (
    test_api_budget,
    test_api_kill,
    test_api_mix,
    test_api_process,
    test_api_refused,
    test_api_shapes,
    test_api_slow,
    test_api_waits,
)
from tests.faults.api import Api, fake_teacher
from tests.faults.conftest import Zygote
from tests.tiny import save_tiny_model


@dataclass
class Bench:
    """What every row works with; `quick` asks for small sizes."""

    api: Api
    quick: bool

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


Row = tuple[str, str]
"""Size and result."""


def kills(bench: Bench) -> Row:
    found = test_api_kill.kill_many(bench.api, bench.size(20, 2), kills_per_run=10)
    size = f"{found.signals} SIGKILLs and {found.points} kills at named points, {found.runs} runs of 500 records"
    result = (
        f"{found.lost} lost, {found.doubled} doubled; {found.repaid / (found.signals + found.points):.1f} paid twice"
    )
    return size, f"{result} per kill, at most {found.most_repaid} (bound {test_api_kill.MOST_REPAID})"


def cuts(bench: Bench) -> Row:
    found = test_api_kill.cut_everywhere(bench.api, bench.size(12, 6))
    return (
        f"{found.num_cuts} cuts, each byte of the last 3 rows",
        f"only the cut rows asked again (at most {found.most_owed})",
    )


def mix(bench: Bench) -> Row:
    num = bench.size(2_000, 300)
    found = [test_api_mix.mixed_faults(bench.api, num, seed) for seed in range(1, bench.size(3, 1) + 1)]
    calls = ", ".join(f"{run.calls_per_record:.2f}" for run in found)
    return f"{num:,} records x {len(found)} seeds", f"all complete, {calls} calls per record (1.43 is the least)"


def refusals(bench: Bench) -> Row:
    seconds = bench.size(10, 2)
    rules = test_api_mix.REFUSALS
    rushes = [test_api_mix.outage(bench.api, 1_000, rules[name], seconds, after=400) for name in rules]
    size = f"all calls fail for {seconds} s, {len(rules)} ways"
    return size, f"all complete; highest rate afterwards {max(rushes):.2f} of the usual"


def answers_503(bench: Bench) -> Row:
    seconds = bench.size(60, 3)
    rush = test_api_mix.outage(bench.api, 1_000, test_api_mix.REFUSALS["503"], seconds, after=400)
    return f"{seconds} s", f"all complete; highest rate afterwards {rush:.2f} of the usual"


def absence(bench: Bench) -> Row:
    seconds, times = bench.size(60, 3), bench.size(5, 1)
    rushes = [test_api_mix.absence(bench.api, 1_000, seconds) for _ in range(times)]
    return f"{seconds} s, {times} times", f"all complete; highest rate afterwards {max(rushes):.2f} of the usual"


def waits(bench: Bench) -> Row:
    forms, codes = test_api_waits.FORMS.values(), (429, 503)
    early = sum(test_api_waits.refused_until(bench.api, 200, *form, status=code) for form in forms for code in codes)
    return f"{len(forms)} forms x 429, 503", f"all complete, {early} calls before the time"


def far_waits(bench: Bench) -> Row:
    for value in ("600", "date:+600"):
        test_api_waits.test_a_time_too_far_away_stops_the_run_saying_when_to_go_on(bench.api, value)
    for value in test_api_waits.NONSENSE:
        test_api_waits.test_a_nonsensical_time_is_ignored(bench.api, value)
    size = f"600 s, a date, {len(test_api_waits.NONSENSE)} nonsensical"
    return size, "too far: exit 75 naming the time; nonsense: own backoff"


def stops(bench: Bench) -> Row:
    counts = [
        test_api_refused.stopped_by(bench.api, code, after) for code in test_api_refused.STOPS for after in (0, 100)
    ]
    return ", ".join(map(str, test_api_refused.STOPS)), f"run stops after at most {max(counts)} calls, answers kept"


def rejects(bench: Bench) -> Row:
    for name in test_api_refused.SAID:
        test_api_refused.test_a_refused_record_is_set_aside_with_the_reason_and_not_asked_for_again(bench.api, name)
    return f"{len(test_api_refused.SAID)} kinds", "one call each, rejected with the server's words"


def slow(bench: Bench) -> Row:
    num = bench.size(4_000, 2_000)
    shares = [test_api_slow.beside_slow_calls(bench.api, rule, num) for rule in test_api_slow.SLOW.values()]
    return (
        f"10 of {num:,} calls, {len(shares)} ways",
        f"all complete; the others keep {min(shares):.0%} of the throughput",
    )


def shapes(bench: Bench) -> Row:
    found = test_api_shapes.malformed(bench.api, bench.size(50, 2))
    said = len(set(found.reasons.values()))
    result = f"each read or rejected, {said} distinct messages, +{found.extra_mb:.0f} MB"
    return f"{found.num_shapes} shapes x {bench.size(50, 2)}", result


def untimely(bench: Bench) -> Row:
    num = bench.size(2_000, 300)
    calls = [test_api_slow.untimely(bench.api, [rule], num) / num for rule in test_api_slow.ODD.values()]
    return f"{num:,} records, {len(calls)} ways", f"one answer each, its own; at most {max(calls):.2f} calls per record"


def budgets(bench: Bench) -> Row:
    found = test_api_budget.budgets(bench.api, bench.size(20, 3))
    over, left = max(0.0, found.most_over), found.most_left / test_api_budget.NUM_RECORDS
    return f"{found.num} budgets", f"exit 4, overspent {over:.2f}; at most {left:.1%} of the run's price left unused"


def disks(bench: Bench) -> Row:
    stops_, repaid = test_api_process.full_disk_everywhere(bench.api, 200, bench.size(300, 3_000))
    return (
        f"{stops_} limits, one after the other",
        f"one clear error each, nothing lost; {repaid / stops_:.1f} paid twice per stop",
    )


def races(bench: Bench) -> Row:
    num = bench.size(50, 3)
    repaid = test_api_process.races(bench.api, num)
    return f"{num} races", f"the second is refused or finds all done; {repaid} asked twice"


def signals(bench: Bench) -> Row:
    num = bench.size(20, 1)
    found = test_api_process.signals(bench.api, num)
    slowest = max(stop.seconds for stops_ in found.values() for stop in stops_)
    lost = sum(stop.repaid for name in ("SIGINT", "SIGTERM") for stop in found[name])
    result = f"exit 130 or 143 within {slowest:.1f} s; {lost} answers lost after one signal"
    return f"{num} each of SIGINT, SIGTERM, SIGINT twice", result


ROWS: dict[str, Callable[[Bench], Row]] = {
    "killed": kills,
    "journal torn": cuts,
    "30 % of 429, 500, 503, reset, hang": mix,
    "everything refused for a while": refusals,
    "503 to everything": answers_503,
    "server gone and back": absence,
    "`Retry-After`": waits,
    "`Retry-After` too far or nonsense": far_waits,
    "refused for good": stops,
    "one record refused": rejects,
    "hang, 1 byte/s, slow headers": slow,
    "malformed replies": shapes,
    "late and doubled replies": untimely,
    "budget reached": budgets,
    "disk full": disks,
    "two processes": races,
    "signals": signals,
}


@contextmanager
def bench(quick: bool) -> Iterator[Bench]:
    """A fake teacher and a process to fork commands from."""
    with tempfile.TemporaryDirectory() as name, fake_teacher() as teacher:
        folder = Path(name)
        zygote = Zygote(folder)
        try:
            yield Bench(Api(zygote, teacher, folder, save_tiny_model(folder / "student")), quick)
        finally:
            zygote.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the table of faults.")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="FAULT")
    options = parser.parse_args()
    failed = 0
    print("| fault | size | result |\n|---|---|---|", flush=True)
    with bench(options.quick) as prepared:
        for name in options.only:
            prepared.api.teacher.begin()
            started = time.monotonic()
            try:
                size, result = ROWS[name](prepared)
            except AssertionError as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                size, result, failed = f"`{place.name}`", f"FAILED: {place.line} {error}".replace("\n", " "), failed + 1
            print(f"| {name} | {size} | {result} |", flush=True)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
