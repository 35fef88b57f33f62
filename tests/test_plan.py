"""The plan: exact counts where they can be known, `unknown` where not, nothing written, mistakes found early.

Its money is in tests/plan/.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmdistill.config import Curate, Evaluate, Filter, Generate, Judge, Model, Prompts, Student, Train
from llmdistill.engines.models import num_parameters
from llmdistill.errors import ConfigError, InputError, ModelError
from llmdistill.generate.stage import prompts_of
from llmdistill.pipeline_file import load_pipeline
from llmdistill.plan import Step, make_plan
from llmdistill.plan.steps import duration
from llmdistill.stages import stages_of
from tests.runs import finish_stage, pipeline
from tests.tiny import REPO

PIPELINES = [path for path in sorted((REPO / "pipelines").glob("*.yaml")) if path.name != "template.yaml"]


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_every_shipped_pipeline_plans(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = load_pipeline(f"pipelines/{path.name}")
    made = make_plan(settings)
    assert [step.stage for step in made.steps] == stages_of(settings)
    found = prompts_of(settings)
    assert made.steps[0].records == found.num_rows
    assert (made.steps[1].requests == 0) == (settings.generate.mode == "import")
    assert made.steps[1].records >= len(found.pool) or settings.generate.mode == "synthetic_qa"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("language", ["en", "ko"])
def test_what_init_writes_plans(tmp_path, monkeypatch, language):
    from llmdistill.cli.init import init

    monkeypatch.chdir(tmp_path)
    Path("질문.jsonl").write_text('{"prompt": "하나"}\n{"prompt": "둘"}\n', "utf-8")
    init(Path("mine.yaml"), prompts="질문.jsonl", language=language)
    made = make_plan(load_pipeline("mine.yaml", ["prompts.held_out=0"]))
    assert (made.name, made.steps[0].records) == ("mine", 2)


def steps_of(folder, model="no/model", **sections) -> dict[str, Step]:
    made = make_plan(pipeline(folder / "run", teacher=Model(model=str(model)), **sections))
    return {step.stage: step for step in made.steps}


def test_counts_of_requests_tokens_and_records_follow_from_the_settings(tmp_path):
    steps = steps_of(
        tmp_path,
        prompts=Prompts(path="data/self-instruct/prompts.jsonl", held_out=0.1),
        generate=Generate(template="prompts/en/answer.yaml", max_new_tokens=100),
        curate=Curate(size=50),
        evaluate=Evaluate(limit=7, max_new_tokens=10),
        filter=Filter(judge=Judge()),
        train=Train(epochs=2),
    )
    pool = steps["generate"].records
    assert 427 * 0.8 < pool < 427
    assert (steps["generate"].requests, steps["generate"].tokens_out) == (pool, 100 * pool)
    assert (steps["filter"].requests, steps["filter"].tokens_out) == (pool, 0)
    assert (steps["train"].records, steps["evaluate"].records) == (50, 7)
    assert (steps["evaluate"].requests, steps["evaluate"].tokens_out) == (21, 210)
    assert steps_of(tmp_path, filter=Filter(judge=None))["filter"].requests == 0


def test_without_the_model_times_are_unknown_and_no_zero_is_invented(tmp_path):
    steps = steps_of(tmp_path)
    assert steps["generate"].seconds is steps["train"].seconds is steps["train"].disk_bytes is None
    assert steps["generate"].cells()[-1] == "unknown"
    notes = make_plan(pipeline(tmp_path / "run")).notes
    assert any("no/model is not on this machine yet" in note for note in notes)


def test_with_the_model_on_disk_times_and_sizes_are_estimated(tmp_path, tiny_model):
    steps = steps_of(tmp_path, tiny_model, student=Student(keep_layers=2))
    assert all(step.seconds is not None and step.disk_bytes is not None for step in steps.values())
    parameters = num_parameters(tiny_model)
    from transformers import AutoModelForCausalLM

    assert parameters == AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    embeddings = 600 * 64
    kept = embeddings + (parameters - embeddings) // 2
    assert steps["train"].disk_bytes == 4 * kept * (2 + 3 * 3)


def test_what_is_done_is_said_to_be_done(tmp_path):
    finish_stage(tmp_path / "run", "prompts", [], held_out=[])
    steps = steps_of(tmp_path)
    assert (steps["prompts"].done, steps["generate"].done) == (True, False)
    assert steps["prompts"].cells()[-1] == "done"


def test_rows_that_cannot_be_used_are_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "a"}\nnonsense\n')
    made = make_plan(pipeline(tmp_path / "run", prompts=Prompts(path=str(path), held_out=0.0)))
    assert any(f"2 rows cannot be used; the first: {path}:2: duplicate_prompt" in note for note in made.notes)
    assert "nothing_held_out" in [warning.code for warning in made.warnings]


@pytest.mark.parametrize(
    ("sections", "kind", "message"),
    [
        ({"prompts": Prompts(path="no.jsonl")}, ConfigError, "no.jsonl: there is no such prompts file"),
        ({"prompts": Prompts(path="README.md")}, (ConfigError, InputError), "README.md"),
        ({"generate": Generate(template="prompts/en/no.yaml")}, ConfigError, "there is no such prompt file"),
        ({"filter": Filter(judge=Judge(rubric="prompts/en/answer.yaml"))}, ConfigError, "scores: Field required"),
        ({"generate": Generate(template="prompts/en/judge.yaml")}, ConfigError, "scores: Extra inputs"),
    ],
)
def test_a_pipeline_that_could_not_run_does_not_plan(tmp_path, sections, kind, message):
    with pytest.raises(kind) as caught:
        make_plan(pipeline(tmp_path / "run", **sections))
    assert message in str(caught.value) and caught.value.exit_code == 2


def test_more_layers_than_the_teacher_has_are_refused_before_anything_is_spent(tmp_path, tiny_model):
    with pytest.raises(ModelError, match="student.keep_layers is 5, but the teacher has 4 layers"):
        steps_of(tmp_path, tiny_model, student=Student(keep_layers=5))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]"], ids=repr)
def test_a_damaged_model_is_one_line_that_names_it(tmp_path, tiny_model, file, content):
    broken = tmp_path / "model"
    shutil.copytree(tiny_model, broken)
    (broken / file).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        steps_of(tmp_path, broken)
    assert str(broken) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no model"):
        steps_of(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (1e6, "277.8 h")],
)
def test_durations_are_written_for_people(seconds, text):
    assert duration(seconds) == text


def test_a_plan_is_plain_data():
    from dataclasses import asdict

    settings = load_pipeline(str(REPO / "pipelines" / "quickstart.yaml"), ["teacher.model=no/model"])
    made = asdict(make_plan(settings))
    assert json.loads(json.dumps(made)) == made
