"""`kill -9`, then the same command again: nothing is lost, nothing is there twice, nothing is paid for twice."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from tests.faults.conftest import GENERATE_TOKENS, STAGES, Run, Zygote
from tests.faults.same import assert_same_results

NUM_KILLS = 20
KILLED, KILLED_AT_FAILPOINT = -9, 137
IN_FLIGHT = 32 + 4
"""Answers one kill may cost: one group of the journal and one batch of the engine."""

WALK = (
    ("files.before_replace:1", "config.json"),
    ("files.before_replace:4", "prompts"),
    ("engine.after_answer:3", "generate"),
    ("journal.after_write:1", "generate"),
    ("journal.after_sync:1", "generate"),
    ("stage.between_files:1", "generate"),
    ("stage.after_shard:2", "generate"),
    ("stage.before_manifest:1", "generate"),
    ("engine.after_answer:5", "filter"),
    ("journal.after_write:1", "filter"),
    ("stage.between_files:2", "filter"),
    ("stage.before_manifest:1", "filter"),
    ("files.before_replace:8", "curate"),
    ("stage.before_manifest:1", "curate"),
    ("train.after_step:3", "train"),
    ("train.before_complete:1", "train"),
    ("train.after_step:5", "train"),
    ("train.before_complete:2", "train"),
    ("stage.before_manifest:1", "train"),
    ("engine.after_answer:2", "evaluate"),
    ("evaluate.after_record:2", "evaluate"),
    ("stage.before_manifest:1", "evaluate"),
    ("files.before_replace:6", "report"),
)
"""Commit boundaries in the order a run meets them, and the stage each kill falls into."""


class Ledger:
    """What a run has paid for: whatever is in a journal must never be asked for again."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.num_seen = 0
        self.on_disk: set[str] = set()

    def check(self) -> None:
        """To be called when a process has ended, whichever way."""
        answers = self.run.answers()
        asked_again = self.on_disk & set(answers[self.num_seen :])
        assert not asked_again, f"{len(asked_again)} answers on disk were asked for again"
        self.num_seen = len(answers)
        kinds = {"generate": f"model write-{GENERATE_TOKENS}", "filter": "model score"}
        for stage, kind in kinds.items():
            rows = self.run.journal(stage).values()
            lost = self.on_disk - {line for line in self.on_disk if not line.startswith(kind)}
            now = {f"{kind} {row['key']}" for row in rows}
            assert lost <= now, "a record that was in the journal is gone"
            self.on_disk |= now

    def num_repeated(self) -> int:
        """Answers that were given more than once; the speed is measured on answers that are meant to repeat."""
        counted = [line for line in self.run.answers() if " write-2 " not in line and " write-32 " not in line]
        return len(counted) - len(set(counted))


def kill_until_done(run: Run, seconds: dict[str, float], rng: random.Random) -> int:
    """Kill each stage at random instants until it is done anyway; gives the number of kills."""
    ledger, kills = Ledger(run), 0
    for stage in STAGES[1:]:
        for patience in range(6):
            process = run.start(stage)
            if patience < 5:
                time.sleep(rng.uniform(0.0, 0.7 * seconds[stage]))
                process.send()
            result = process.wait()
            ledger.check()
            if result.code == KILLED:
                kills += 1
                continue
            result.ok()
            break
    assert ledger.num_repeated() <= kills * IN_FLIGHT
    return kills


def test_twenty_kills_at_random_instants_change_nothing(
    undisturbed: Run, zygote: Zygote, pipeline_file: Path, tmp_path: Path
) -> None:
    seconds = json.loads((undisturbed.folder / "seconds.json").read_text())
    rng, kills, rounds = random.Random(20), 0, 0
    while kills < NUM_KILLS and rounds < 4:
        rounds += 1
        folder = tmp_path / str(rounds)
        folder.mkdir()
        run = Run(zygote, folder, pipeline_file, folder / "run")
        kills += kill_until_done(run, seconds, rng)
        assert_same_results(run, undisturbed)
    assert kills >= NUM_KILLS


def test_a_kill_at_every_commit_boundary_changes_nothing(new_run: Run, undisturbed: Run) -> None:
    ledger = Ledger(new_run)
    for failpoint, stage in WALK:
        result = new_run.do("run", failpoint=failpoint)
        assert result.code == KILLED_AT_FAILPOINT, f"{failpoint} of {stage} was not met: {result.stderr}"
        done = [name for name in STAGES if (new_run.dir / name / "manifest.json").exists()]
        if stage in STAGES:
            assert len(done) == STAGES.index(stage), f"{failpoint} fell into another stage than {stage}"
        ledger.check()
    new_run.do("run").ok()
    ledger.check()
    assert ledger.num_repeated() <= 8 * IN_FLIGHT
    assert_same_results(new_run, undisturbed)


@pytest.mark.parametrize("stage", [name for name in STAGES[1:] if name != "train"])
def test_a_kill_just_before_the_manifest_costs_no_model_work(finished: Run, stage: str) -> None:
    (finished.dir / stage / "manifest.json").unlink()
    finished.do(stage, failpoint="engine.after_answer:1").ok()


def test_a_kill_between_the_last_step_and_the_manifest_trains_no_step_again(finished: Run) -> None:
    settings = ("train.learning_rate=0.002",)
    assert finished.do("train", *settings, fresh=True, failpoint="stage.before_manifest").code == KILLED_AT_FAILPOINT
    finished.do("train", *settings, failpoint="train.after_step:1").ok()


def test_a_finished_run_is_skipped_without_touching_a_file(finished: Run) -> None:
    def state() -> dict[str, int]:
        files = [path for path in finished.dir.rglob("*") if path.is_file()]
        return {str(path): path.stat().st_mtime_ns for path in files if path.name not in ("config.json", ".lock")}

    finished.do("run").ok()  # the report names the run directory, and this one is a copy
    before = state()
    result = finished.do("run", failpoint="engine.after_answer:1").ok()
    assert result.stderr.count("done already") == len(STAGES)
    assert state() == before
