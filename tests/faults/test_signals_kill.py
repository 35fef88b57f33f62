"""`llmdistill signals` killed at its commit boundaries and at any instant: the bytes are those of a calm run."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Run, Zygote
from tests.runs import answered, finish_stage
from tests.tiny import PROMPTS, REPO

SETTINGS = ("signals.k=16", "signals.shard_records=4", "signals.batch_tokens=256")
NUM_SHARDS = 5
KILLED, KILLED_AT_FAILPOINT = -9, 137
POINTS = (
    "files.before_replace:4",  # sharding.json, after config.json, begun.json and rejects.parquet
    "signals.after_record:3",
    "signals.before_shard:1",  # the header names the shard, which is not there
    "files.before_replace:4",  # the shard, after config.json, rejects.parquet and header.json
    "signals.after_shard:1",
    "signals.after_shard:2",
    "signals.after_record:6",
    "files.before_replace:5",
    "stage.before_manifest:1",
)


@pytest.fixture(scope="module")
def untouched(zygote: Zygote, pipeline_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose `curate` is finished: twenty records, some of them Korean. Not to be changed."""
    folder = tmp_path_factory.mktemp("curated")
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").splitlines()[:16]]
    texts += [
        json.loads(line)["prompt"] for line in (REPO / "data/korean/prompts.jsonl").read_text("utf-8").split("\n")[:4]
    ]
    chosen = [answered(text, f"답은 {number}입니다. " * (number % 4 + 1)) for number, text in enumerate(texts)]
    finish_stage(folder / "run", "curate", [chosen])
    return Run(zygote, folder, pipeline_file, folder / "run")


@pytest.fixture(scope="module")
def undisturbed(untouched: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """The files of a stage that nothing disturbed, and the seconds it took."""
    run = untouched.copy(tmp_path_factory.mktemp("undisturbed"))
    started = time.monotonic()
    run.do("signals", *SETTINGS).ok()
    seconds = time.monotonic() - started
    assert len(list((run.dir / "signals").glob("part-*"))) == NUM_SHARDS
    return files_of(run), seconds


def files_of(run: Run) -> dict[str, bytes]:
    """Every file of the stage but the manifest, which says how long it took; nothing half-made may be left."""
    found = {path.name: path.read_bytes() for path in (run.dir / "signals").iterdir()}
    assert not [name for name in found if name.endswith(".tmp")]
    manifest = json.loads(found.pop("manifest.json"))
    counts = {key: manifest[key] for key in ("counts", "metrics", "outputs", "digest")}
    return {**found, "of the manifest": json.dumps(counts, sort_keys=True).encode()}


def shards_of(run: Run) -> dict[str, tuple[int, int]]:
    """Inode and time of the shards that are there: they must never be written again."""
    found = {path.name: path.stat() for path in (run.dir / "signals").glob("part-*")}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in found.items()}


def test_a_kill_at_every_commit_boundary_changes_no_byte(untouched, undisturbed, tmp_path):
    run = untouched.copy(tmp_path / "killed")
    for point in POINTS:
        before = shards_of(run)
        result = run.do("signals", *SETTINGS, failpoint=point)
        assert result.code == KILLED_AT_FAILPOINT, f"{point} was not met: {result.stderr}"
        assert before.items() <= shards_of(run).items()
    assert len(shards_of(run)) == NUM_SHARDS
    run.do("signals", *SETTINGS, failpoint="signals.after_record:1").ok()  # all is captured: the teacher is not asked
    assert files_of(run) == undisturbed[0]


def test_kills_at_random_instants_change_no_byte(untouched, undisturbed, tmp_path):
    wanted, seconds = undisturbed
    rng, kills = random.Random(6), 0
    for number in range(2):
        run = untouched.copy(tmp_path / str(number))
        for _ in range(3):
            before = shards_of(run)
            process = run.start("signals", *SETTINGS)
            time.sleep(rng.uniform(0.2, 1.0) * seconds)
            process.send()
            kills += process.wait().code == KILLED
            assert before.items() <= shards_of(run).items()
        run.do("signals", *SETTINGS).ok()
        assert files_of(run) == wanted
        shutil.rmtree(run.folder)
    assert kills >= 2


def test_a_finished_stage_is_skipped_without_touching_a_file(untouched, tmp_path):
    run = untouched.copy(tmp_path / "finished")
    first = json.loads(run.do("signals", *SETTINGS).ok().stdout or "null")
    before = {path.name: path.stat().st_mtime_ns for path in (run.dir / "signals").iterdir()}
    result = run.do("signals", *SETTINGS, failpoint="signals.after_record:1").ok()
    assert first is None and "signals   done already" in result.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (run.dir / "signals").iterdir()} == before
