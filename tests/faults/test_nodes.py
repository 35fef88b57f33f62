"""Shards on a cluster whose nodes die, and whose driver dies: the result is that of one process, byte for byte."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.api import Api, ApiRun, fake_teacher
from tests.faults.conftest import Process, Zygote, wait_until
from tests.faults.ray_nodes import Nodes, ray_nodes
from tests.faults.same import plain

pytest.importorskip("ray", reason="needs llmdistill[ray]")

SHARD, NUM_SHARDS = 5, 20
NUM_QUESTIONS = SHARD * NUM_SHARDS
IN_FLIGHT = 2
SETTINGS = (
    f"generate.shard_size={SHARD}",
    f"teacher.api.max_concurrency={IN_FLIGHT}",
    "teacher.price={input: 0.25, output: 2}",
    "teacher.revision=one",
    "filter.verify={kind: regex, pattern: '.*[0-9]\\.'}",
    "filter.judge={scoring: written, min_score: 3}",
)
"""Some questions are refused, some answers are wrong, the others are judged; each answer takes a while."""

BEHAVIOUR: dict[str, Any] = {
    "latency": 0.1,
    "rules": [
        {"kind": "constant", "match": "rubric"},
        {"kind": "status", "status": 400, "match": "7: what"},
    ],
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_nodes(2) as cluster:
        yield cluster


def files_of(run: ApiRun, stages: tuple[str, ...] = ("generate", "filter")) -> dict[str, bytes]:
    """Every result of the stages, byte for byte; of a manifest what does not depend on the clock."""
    found: dict[str, Any] = {}
    for stage in stages:
        found |= {f"{stage}/{path.name}": path.read_bytes() for path in (run.dir / stage).glob("*.parquet")}
        found[f"{stage}/manifest.json"] = plain(run.manifest(stage))
    return found


def of_generate(files: dict[str, Any]) -> dict[str, Any]:
    return {name: data for name, data in files.items() if name.startswith("generate/")}


@pytest.fixture(scope="module")
def alone(zygote: Zygote, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes of the questions. Whom it asks is no part of a result."""
    with fake_teacher(**{**BEHAVIOUR, "latency": 0.0}) as teacher:
        run = Api(zygote, teacher, tmp_path_factory.mktemp("alone"), tiny_model).run(NUM_QUESTIONS)
        for stage in ("generate", "filter"):
            run.do(stage, *SETTINGS).ok()
        return files_of(run)


def on(nodes: Nodes, run: ApiRun, stage: str, *more: str) -> Process:
    """The stage, begun on the cluster."""
    given = ("run.executor=ray", f"run.ray_address={nodes.address}", *SETTINGS, *more)
    return run.start(stage, *given, env=nodes.env)


def answered(run: ApiRun) -> int:
    return run.teacher.count()["num_answers"]


def num_parts(run: ApiRun, stage: str) -> int:
    return len(list((run.dir / stage).glob("part-*.parquet")))


def known(run: ApiRun) -> set[str]:
    """Questions, by the teacher's key, whose answers are on disk in the run itself."""
    texts = {row.get("text") for row in run.journalled().values()}
    return {key for key, answer in run.keys().items() if answer in texts}


def asked_twice(run: ApiRun) -> set[str]:
    return {key for key, number in run.teacher.log().paid.items() if number > 1} & set(run.keys())


def test_what_is_lost_with_a_node_is_done_by_another_and_the_bytes_are_those_of_one_process(
    api: Api, nodes: Nodes, alone: dict[str, Any]
) -> None:
    api.teacher.begin(**BEHAVIOUR)
    run, rng = api.run(NUM_QUESTIONS), random.Random(9)
    for stage in ("generate", "filter"):
        process, before = on(nodes, run, stage), answered(run)
        wait_until(lambda before=before: answered(run) > before + 15)
        nodes.replace(rng.randrange(len(nodes.alive)))
        process.wait().ok()
    assert files_of(run) == alone
    assert not (run.dir / "generate" / "journal" / "shards").exists()


def test_a_driver_that_is_stopped_or_killed_goes_on_here_or_there_and_asks_nothing_again_that_is_finished(
    api: Api, nodes: Nodes, alone: dict[str, Any]
) -> None:
    api.teacher.begin(**BEHAVIOUR)
    run = api.run(NUM_QUESTIONS)
    process = on(nodes, run, "generate")
    wait_until(lambda: num_parts(run, "generate") >= 2)
    process.send(signal.SIGTERM)
    assert process.wait().code == 128 + signal.SIGTERM
    assert not run.teacher.count()["in_flight"], "the workers are gone"
    process = on(nodes, run, "generate")
    wait_until(lambda: num_parts(run, "generate") >= 8)
    assert not asked_twice(run), "workers that are told to stop lose no answer"
    process.send(signal.SIGKILL)
    process.wait()
    finished = known(run)
    run.do("generate", *SETTINGS).ok()
    assert len(finished) > 8 * SHARD / 2 and not asked_twice(run) & finished
    assert len(asked_twice(run)) <= len(nodes.alive) * (IN_FLIGHT + SHARD)
    assert files_of(run, ("generate",)) == of_generate(alone)


def test_shards_go_through_a_storage_where_the_nodes_share_no_disk(
    api: Api, nodes: Nodes, alone: dict[str, Any], tmp_path: Path
) -> None:
    api.teacher.begin(**BEHAVIOUR)
    run = api.run(NUM_QUESTIONS)
    storage = f"run.storage=file://{tmp_path}/bucket"
    process = on(nodes, run, "generate", storage)
    wait_until(lambda: num_parts(run, "generate") >= 4)
    nodes.replace(0)
    process.send(signal.SIGKILL)
    process.wait()
    finished, before = known(run), run.teacher.log().paid
    on(nodes, run, "generate", storage).wait().ok()
    paid = run.teacher.log().paid
    assert finished and not [key for key in finished if paid[key] > before[key]]
    assert files_of(run, ("generate",)) == of_generate(alone)
    assert not [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()], "nothing is left there"
