"""Does the daemon lose a firing, or run one twice? Fifty and more firings with kills, clock jumps and overlapping runs.

    python -m tests.bench.schedule_firings [--firings 50] [--rounds 4] [--seed 0] [--libfaketime PATH]

One firing every second. Every round does each thing to the daemon once, at random moments. With libfaketime
the clock of the daemon's process is set from outside; without, its own clock and APScheduler's are replaced by one
that reads its shift from a file.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

from tests.schedule.trial import ACTIONS, run_trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--firings", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--libfaketime")
    options = parser.parse_args()
    if options.libfaketime:
        os.environ["LIBFAKETIME"] = options.libfaketime
    chance, actions = random.Random(options.seed), []
    for _ in range(options.rounds):
        actions += chance.sample(ACTIONS, len(ACTIONS))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trial = run_trial(Path(folder), options.firings, actions, options.seed)
    coalesced = [row for row in trial.rows if row.first != row.planned]
    rows = {
        "seconds": f"{time.monotonic() - started:.0f}",
        "firings that ended": len(trial.rows),
        "  of them for several planned times": len(coalesced),
        "  begun more than once": sum(row.attempts > 1 for row in trial.rows),
        "refreshes begun": len(trial.planned_when("begin")),
        "refreshes side by side": len(trial.planned_when("parallel")),
        "planned times lost": len(trial.lost),
        "planned times doubled": len(trial.doubled),
        **{f"done to it: {name}": count for name, count in sorted(trial.done.items())},
    }
    for name, value in rows.items():
        print(f"{name:<44}{value:>8}")


if __name__ == "__main__":
    main()
