"""A shard that is worked on apart, here by this very process: what goes along, what comes back, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from llmdistill.config import (
    Api,
    Budget,
    CoTeacher,
    Filter,
    Generate,
    Judge,
    Model,
    Pipeline,
    Prompts,
    Run,
    Samples,
    Verify,
    Vllm,
)
from llmdistill.errors import ConfigError
from llmdistill.filter import stage as filter_stage
from llmdistill.generate import apart
from llmdistill.generate import stage as generate_stage
from llmdistill.run import shards
from llmdistill.run.executor import Local
from tests.faults.api import FakeTeacher, fake_teacher
from tests.faults.same import plain
from tests.runs import pipeline
from tests.tiny import REPO

NUM, SHARD = 23, 5
Make = Callable[..., Pipeline]


@pytest.fixture(scope="module")
def teacher() -> Iterator[FakeTeacher]:
    with fake_teacher() as process:
        yield process


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, teacher: FakeTeacher) -> None:
    monkeypatch.setattr(shards, "executor_of", lambda _: Local())
    monkeypatch.chdir(REPO)
    teacher.begin()


@pytest.fixture
def make(tmp_path: Path, teacher: FakeTeacher) -> Make:
    """A pipeline whose shards are worked on apart, or with `apart=False` as usual."""
    path = tmp_path / "prompts.jsonl"
    rows = ({"prompt": f"Question {n}: what comes after {n}?", "reference": str(n)} for n in range(NUM))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(name: str, apart: bool = True, storage: str | None = None, **sections: Any) -> Pipeline:
        model = Model(model="fake", revision="1", engine="openai", api=Api(base_url=teacher.url, patience=5))
        usual = {
            "prompts": Prompts(path=str(path), held_out=0.0),
            "teacher": model,
            "generate": generate(),
            "run": Run(executor="ray" if apart else "local", storage=storage),
        }
        return pipeline(tmp_path / name, **{**usual, **sections})

    return made


def generate(**more: Any) -> Generate:
    usual = {"template": "prompts/en/answer.yaml", "temperature": 0.5, "shard_size": SHARD}
    return Generate(**{**usual, **more})


def done(settings: Pipeline) -> dict[str, Any]:
    """Both stages, and their results byte for byte."""
    found: dict[str, Any] = {}
    manifests = {"prompts": generate_stage.read(settings), "generate": generate_stage.run(settings)}
    manifests["filter"] = filter_stage.run(settings)
    for stage in ("generate", "filter"):
        folder = settings.run_path / stage
        found |= {f"{stage}/{path.name}": path.read_bytes() for path in folder.glob("*.parquet")}
        found[f"{stage}/manifest.json"] = plain(json.loads((folder / "manifest.json").read_text()))
    assert manifests["filter"].counts.input == manifests["generate"].counts.kept
    return found


WRITTEN = {"scoring": "written", "min_score": 0.1}
WAYS: dict[str, dict[str, Any]] = {
    "one answer, no judge": {},
    "samples voted on, verified and compared with each other": {
        "generate": generate(samples=Samples(n=3, vote=True)),
        "filter": Filter(
            verify=Verify(kind="regex", pattern=r".*[0-9]\."),
            judge=Judge(form="pairwise", against="samples", rubric="prompts/en/judge-pairwise.yaml", **WRITTEN),
        ),
    },
    "a fallback for what is wrong, and a judge": {
        "filter": Filter(verify=Verify(kind="regex", pattern=r".*[0-9]\."), judge=Judge(**WRITTEN)),
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_shards_worked_on_apart_give_the_bytes_of_one_process(make, teacher, way):
    teacher.begin(rules=[{"kind": "constant", "match": "rubric"}, {"kind": "status", "status": 400, "match": "7: w"}])
    sections = dict(WAYS[way])
    if "fallback" in way:
        other = make("x").teacher.model_copy(update={"model": "other"})
        sections["generate"] = generate(fallback=other, co_teachers=(CoTeacher(model=other),))
    assert done(make("apart", **sections)) == done(make("alone", apart=False, **sections))


def test_nothing_is_left_in_the_storage_and_the_journals_are_those_of_one_process(make):
    place = f"memory://{uuid.uuid4().hex}"
    settings, alone = make("apart", storage=place), make("alone", apart=False)
    assert done(settings) == done(alone)
    system, root = fsspec.url_to_fs(place)
    assert not system.find(root)
    rows = [
        sorted(path.read_text().splitlines() for path in (run.run_path / "generate" / "journal").glob("*.jsonl"))
        for run in (settings, alone)
    ]
    assert [sorted(lines) for lines in rows[0]] == [sorted(lines) for lines in rows[1]]


def test_what_was_answered_before_goes_along_and_is_not_asked_again(make, teacher):
    whole = make("run", apart=False)
    done(whole)
    for name in ("part-00001.parquet", "part-00003.parquet", "manifest.json", "rejects.parquet"):
        (whole.run_path / "generate" / name).unlink()
    before = teacher.count()["num_calls"]
    generate_stage.run(make("run"))
    assert teacher.count()["num_calls"] == before


def test_a_shard_that_was_finished_for_a_process_that_died_is_taken_from_the_storage(make, teacher, monkeypatch):
    place = f"memory://{uuid.uuid4().hex}"
    settings = make("run", storage=place)
    generate_stage.read(settings)

    def died(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards._Apart, "take", died)
    with pytest.raises(KeyboardInterrupt):
        generate_stage.run(settings)
    monkeypatch.undo()
    monkeypatch.setattr(shards, "executor_of", lambda _: Local())
    monkeypatch.chdir(REPO)
    assert teacher.count()["num_calls"] == SHARD
    generate_stage.run(settings)
    assert teacher.count()["num_calls"] == NUM


def test_answers_of_a_shard_that_was_never_taken_back_are_kept_by_any_executor(make, teacher):
    done(make("run", apart=False))
    run = make("run", apart=False).run_path
    whole = {path.name: path.read_bytes() for path in (run / "generate" / "journal").glob("*.jsonl")}
    lost = run / "generate" / "journal" / "shards" / "00002" / "generate" / "journal"
    lost.mkdir(parents=True)
    for name, data in whole.items():
        lines = data.splitlines(keepends=True)
        (run / "generate" / "journal" / name).write_bytes(b"".join(lines[:9]))
        (lost / name).write_bytes(b"".join(lines[9:20]) + lines[20][:-20])  # the last one is torn
    for path in (run / "generate").glob("*.parquet"):
        path.unlink()
    (run / "generate" / "manifest.json").unlink()
    before = teacher.count()["num_calls"]
    generate_stage.run(make("run", apart=False))
    assert teacher.count()["num_calls"] == before + NUM - 20
    assert not (run / "generate" / "journal" / "shards" / "00002").exists()


def test_prompt_files_go_along_to_a_machine_that_does_not_have_them(make, teacher, monkeypatch, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    text = (REPO / "prompts" / "en" / "answer.yaml").read_text()
    (work / "mine.yaml").write_text(text.replace("system:", "system: MINE", 1) if "system:" in text else text)
    place = f"memory://{uuid.uuid4().hex}"
    settings = make("run", storage=place, generate=generate(template="mine.yaml"))
    generate_stage.read(settings)
    put, run_shard = shards._Apart.item, apart.run_shard

    def elsewhere(item: dict[str, Any], do: Any) -> Any:
        shutil.rmtree(work, ignore_errors=True)
        os.chdir("/")
        return run_shard({**item, "cwd": "/nowhere"}, do)

    monkeypatch.setattr(apart, "run_shard", elsewhere)
    monkeypatch.setattr(shards._Apart, "item", lambda self, shard: put(self, shard) | {"cwd": "/nowhere"})
    items = []

    class First(Local):
        def map(self, work_: Any, items_: Any) -> Any:
            items.extend(items_)  # all go out before this machine loses its folder
            yield from super().map(work_, items)

    monkeypatch.setattr(shards, "executor_of", lambda _: First())
    generate_stage.run(settings)
    assert os.getcwd() == "/"
    assert teacher.count()["num_calls"] == NUM


@pytest.mark.parametrize(
    ("changed", "told"), [({"version": "0"}, "same version"), ({"asked": "0"}, "pin the model's revision")]
)
def test_a_worker_that_would_do_something_else_says_so(make, monkeypatch, changed, told):
    settings = make("run")
    generate_stage.read(settings)
    item = shards._Apart.item
    monkeypatch.setattr(shards._Apart, "item", lambda self, shard: item(self, shard) | changed)
    with pytest.raises(ConfigError, match=told):
        generate_stage.run(settings)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a budget in dollars": ({"budget": Budget(max_cost=1.0)}, "budget"),
    "a budget in tokens": ({"budget": Budget(max_tokens=10)}, "budget"),
    "new prompts": ({"generate": generate(mode="evolve")}, "generate.mode: evolve"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_only_one_process_can_do_is_refused_before_anything_is_asked(make, teacher, case):
    sections, where = REFUSED[case]
    settings = make("run", **sections)
    generate_stage.read(settings)
    with pytest.raises(ConfigError) as caught:
        generate_stage.run(settings)
    assert caught.value.where == where and "run.executor" in str(caught.value)
    assert not teacher.count()["num_calls"]


def test_a_worker_with_fewer_gpus_than_the_model_is_spread_over_is_refused(make):
    spread = Model(model="m", engine="vllm", vllm=Vllm(tensor_parallel_size=4))
    settings = make("run", run=Run(executor="ray", num_gpus=2))
    with pytest.raises(ConfigError, match="spread over 4 GPUs, and a worker has 2"):
        shards.check_can_be_apart(settings, [("teacher", spread)])
    shards.check_can_be_apart(make("run", run=Run(executor="ray", num_gpus=4)), [("teacher", spread)])


def test_a_batch_is_refused(make, teacher):
    settings = make("run")
    batch = settings.teacher.model_copy(update={"api": settings.teacher.api.model_copy(update={"batch": True})})
    settings = settings.model_copy(update={"teacher": batch})
    generate_stage.read(settings)
    with pytest.raises(ConfigError, match="a batch is worked on by its server"):
        generate_stage.run(settings)
