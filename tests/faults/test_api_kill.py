"""`kill -9` while a server answers: no answer is lost, none is there twice, and few are paid for twice."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.api import CONCURRENCY, GROUP_ROWS, Api, ApiRun
from tests.faults.conftest import wait_until

KILLED, KILLED_AT_POINT = -9, 137
MOST_REPAID = 2 * CONCURRENCY + GROUP_ROWS
"""Answers that one kill may cost: in flight, waiting to be read while a slow disk syncs, and in the group it syncs."""

ASKING = ("engine.after_answer:{}", "journal.after_write:1", "journal.after_sync:1", "files.before_replace:{}")
ENDING = ("stage.between_files:2", "stage.after_shard:3", "stage.before_manifest:1")


@dataclass
class Kills:
    """What many kills did, in answers."""

    runs: int = 0
    signals: int = 0
    points: int = 0
    lost: int = 0
    doubled: int = 0
    repaid: int = 0
    most_repaid: int = 0

    def check(self, run: ApiRun, before: set[str]) -> set[str]:
        """Look at the run after a kill; gives what its journal holds now."""
        now = set(run.journalled())  # fails on a row that is there twice
        self.lost += len(before - now)
        log = run.teacher.log()
        answers = {row["text"] for row in run.journalled().values()}
        right = run.keys()
        to_pay_again = sum(1 for key in log.paid if right[key] not in answers)
        self.most_repaid = max(self.most_repaid, to_pay_again)
        return now


def start_and_kill(run: ApiRun, rng: random.Random) -> int:
    """Start the command, kill it at a random instant; gives its exit code."""
    before = run.teacher.count()["num_calls"]
    process = run.start("generate")
    wanted = rng.randint(0, 25)
    if wanted:
        deadline = time.monotonic() + 20
        while run.teacher.count()["num_calls"] < before + wanted and time.monotonic() < deadline:
            time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 0.03 if wanted else 0.6))
    with contextlib.suppress(ProcessLookupError):
        process.send()
    return process.wait().code


def kill_one_run(run: ApiRun, num_kills: int, rng: random.Random, kills: Kills) -> None:
    """Kill a run that often by signal, and at named points, then let it end."""
    on_disk: set[str] = set()
    for number in range(num_kills):
        code = start_and_kill(run, rng)
        kills.signals += code == KILLED
        if code == 0:
            break
        on_disk = kills.check(run, on_disk)
        if number % 4 == 1:
            point = rng.choice(ASKING).format(rng.randint(1, 5))
            kills.points += run.generate(failpoint=point).code == KILLED_AT_POINT
            on_disk = kills.check(run, on_disk)
    kills.points += run.generate(failpoint=rng.choice(ENDING)).code == KILLED_AT_POINT
    kills.check(run, on_disk)
    run.generate().ok()
    kills.lost += len(run.wrong())
    kills.doubled += len(run.kept()) - len({row["id"] for row in run.kept()})
    kills.repaid += sum(run.teacher.log().paid.values()) - len(run.questions)
    run.assert_complete()


def kill_many(api: Api, num_runs: int, kills_per_run: int, num_records: int = 500, seed: int = 3) -> Kills:
    """Kill many runs of many records."""
    rng, kills = random.Random(seed), Kills()
    while kills.signals < num_runs * kills_per_run and kills.runs < 2 * num_runs:
        kills.runs += 1
        api.teacher.begin(latency=0.05)
        kill_one_run(api.run(num_records), kills_per_run, rng, kills)
    assert (kills.lost, kills.doubled) == (0, 0)
    assert kills.most_repaid <= MOST_REPAID
    assert kills.repaid <= (kills.signals + kills.points) * MOST_REPAID
    return kills


def test_many_kills_lose_and_double_nothing(api: Api) -> None:
    """`python -m tests.faults.table` does two hundred over twenty runs."""
    kills = kill_many(api, num_runs=4, kills_per_run=10)
    assert kills.signals >= 40 and kills.points >= 8


@dataclass
class Cuts:
    """What cutting a journal did."""

    num_cuts: int = 0
    most_owed: int = 0


def cut_everywhere(api: Api, num_records: int, num_rows: int = 3, step: int = 1) -> Cuts:
    """Cut a finished run's journal at every byte of its last rows and go on each time, in this process.

    `step` leaves bytes out between the ends of the rows.
    """
    from llmdistill.generate import stage
    from llmdistill.pipeline_file import load_pipeline

    run, cuts = api.run(num_records), Cuts()
    run.generate().ok()
    pipeline = load_pipeline(str(run.pipeline), [f"run_dir={run.dir}"])
    (journal,) = (run.dir / "generate" / "journal").glob("*.jsonl")
    data = journal.read_bytes()
    first = len(b"".join(data.splitlines(keepends=True)[:-num_rows]))
    for size in range(first, len(data) + 1):
        if size % step and b"\n" not in data[size - 1 : size + 2]:
            continue
        before_compaction(run.dir / "generate")
        journal.write_bytes(data[:size])
        whole = data[:size].count(b"\n")
        api.teacher.begin()
        with contextlib.redirect_stderr(io.StringIO()):
            stage.run(pipeline)
        assert api.teacher.count()["num_calls"] == num_records - whole
        assert journal.read_bytes().startswith(data[:size][: data[:size].rfind(b"\n") + 1])
        run.assert_complete()
        cuts = Cuts(cuts.num_cuts + 1, max(cuts.most_owed, num_records - whole))
    return cuts


def before_compaction(stage_dir: Path) -> None:
    """Take away what a stage makes of its journal."""
    for path in [*stage_dir.glob("*.parquet"), stage_dir / "manifest.json"]:
        path.unlink(missing_ok=True)
    shutil.rmtree(stage_dir / "working", ignore_errors=True)


def test_a_journal_cut_at_any_byte_of_its_last_rows_costs_only_the_cut_rows(api: Api) -> None:
    cuts = cut_everywhere(api, num_records=6, step=9)
    assert cuts.num_cuts > 40 and cuts.most_owed == 3


def test_answers_on_disk_are_never_asked_for_again(api: Api) -> None:
    api.teacher.begin(latency=0.05)
    run = api.run(200)
    process = run.start("generate")
    wait_until(lambda: (run.dir / "generate" / "journal").exists() and len(run.journalled()) >= 60)
    process.send()
    process.wait()
    num_on_disk = len(run.journalled())
    api.teacher.begin()
    run.generate().ok()
    assert api.teacher.count()["num_calls"] == 200 - num_on_disk
    run.assert_complete()
